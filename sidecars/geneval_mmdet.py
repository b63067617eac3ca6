"""GenEval's detector as a process: Mask2Former (Swin-S, COCO) of mmdet 2.x, which needs an environment of its own.

    python geneval_mmdet.py --config mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py --checkpoint FILE.pth

It runs with Python 3.8 to 3.10, torch 1.13 to 2.1, mmcv-full 1.7 and mmdet 2.27 or 2.28; it needs nothing of afterflow.
GET /health says how many classes it knows; POST /detect takes {"images": [base64 of a PNG, ...]} and answers
{"detections": [[{"class", "score", "box": [x0, y0, x1, y1], "mask": base64 of a PNG}, ...], ...]}, a class by its place
among COCO's 80.  Pickle crosses no process; it listens on this machine alone unless --host says otherwise.
"""

import argparse
import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

import numpy as np
from mmdet.apis import inference_detector, init_detector
from PIL import Image

LEAST = 0.1
"""No rule asks for a detection of a lower score."""
MOST = 16
"""Of a class."""
MEGABYTES = 512


def detections(model, image):
    """Of a picture, uint8 (H, W, 3) in RGB; mmdet wants BGR, and gives boxes and masks class by class."""
    boxes, masks = inference_detector(model, np.ascontiguousarray(image[..., ::-1]))[:2]
    found = []
    for label, (of_class, shapes) in enumerate(zip(boxes, masks)):
        for row in np.argsort(-of_class[:, 4])[:MOST]:
            if of_class[row, 4] > LEAST:
                box = [float(side) for side in of_class[row, :4]]
                mask = packed(np.asarray(shapes[row], bool))
                found.append({"class": label, "score": float(of_class[row, 4]), "box": box, "mask": mask})
    return found


def packed(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def opened(text):
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def handler(model, classes):
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def reply(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            known = self.path == "/health"
            self.reply(
                200 if known else 404, {"status": "ok", "classes": classes} if known else {"error": "no such page"}
            )

        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            if self.path != "/detect" or not 0 < length <= MEGABYTES * 2**20:
                return self.reply(404 if self.path != "/detect" else 413, {"error": "POST /detect takes images"})
            try:
                images = [opened(text) for text in json.loads(self.rfile.read(length))["images"]]
            except (ValueError, KeyError, TypeError, OSError, SyntaxError, Image.DecompressionBombError):
                return self.reply(422, {"error": "images are a list of PNGs in base64"})
            with lock:
                self.reply(200, {"detections": [detections(model, image) for image in images]})

    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8110)
    options = parser.parse_args()
    model = init_detector(options.config, options.checkpoint, device=options.device)
    server = ThreadingHTTPServer((options.host, options.port), handler(model, len(model.CLASSES)))
    print(f"listening on {server.server_address[0]}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
