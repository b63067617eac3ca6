"""GenEval's detector as a process: Mask2Former (Swin-S, COCO) of mmdet 2.x, which needs an environment of its own.

    python geneval_mmdet.py --config mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py --checkpoint FILE.pth

It runs with Python 3.8 to 3.10, torch 1.13 to 2.1, mmcv-full 1.7 and mmdet 2.27 or 2.28; it needs nothing of afterflow.
GET /health answers with the number of its classes; POST /detect takes {"images": [base64 of a PNG, ...]} and answers
{"detections": [[{"class", "score", "box": [x0, y0, x1, y1], "mask": base64 of a PNG}, ...], ...]}, a class by its index
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

MIN_SCORE = 0.1
"""No rule asks for a detection of a lower score."""
MAX_PER_CLASS = 16
"""Largest number of detections of a class."""
MAX_MEGABYTES, MAX_IMAGES, MAX_PIXELS = 512, 256, 2048 * 2048
"""Largest size of a request, number of its images, and of the pixels of one."""
SECONDS = 60
"""Longest time that a client may say nothing in the middle of a request."""


def detections(model, image):
    """Return the objects of an image, uint8 (H, W, 3) in RGB; mmdet wants BGR, and answers class by class."""
    boxes, masks = inference_detector(model, np.ascontiguousarray(image[..., ::-1]))[:2]
    result = []
    for label, (of_class, shapes) in enumerate(zip(boxes, masks)):
        for row in np.argsort(-of_class[:, 4])[:MAX_PER_CLASS]:
            if of_class[row, 4] > MIN_SCORE:
                box = [float(side) for side in of_class[row, :4]]
                mask = encode_mask(np.asarray(shapes[row], bool))
                result.append({"class": label, "score": float(of_class[row, 4]), "box": box, "mask": mask})
    return result


def encode_mask(mask):
    """Return a mask (H, W) as PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def decode_image(text):
    """Return uint8 (H, W, 3) from a PNG in base64."""
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("an image is too large")
        return np.asarray(image.convert("RGB"))


def handler(model, classes):
    """Return the class that answers requests, one image after another."""
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS

        def log_message(self, *args):
            pass

        def reply(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/health":
                self.reply(200, {"status": "ok", "classes": classes})
            else:
                self.reply(404, {"error": "no such page"})

        def do_POST(self):
            if self.headers.get("Origin"):
                return self.reply(403, {"error": "no web page may ask"})
            text = self.headers.get("Content-Length", "0")
            length = int(text) if text.isdigit() and len(text) < 12 else 0
            if self.path != "/detect" or not 0 < length <= MAX_MEGABYTES * 2**20:
                return self.reply(404 if self.path != "/detect" else 413, {"error": "POST /detect takes images"})
            try:
                texts = json.loads(self.rfile.read(length))["images"]
                if not isinstance(texts, list) or len(texts) > MAX_IMAGES:
                    raise ValueError("images are a list")
                images = [decode_image(text) for text in texts]
            except (
                ValueError,
                RecursionError,
                KeyError,
                TypeError,
                OSError,
                SyntaxError,
                Image.DecompressionBombError,
            ):
                return self.reply(422, {"error": "images are a list of PNGs in base64"})
            with lock:
                self.reply(200, {"detections": [detections(model, image) for image in images]})

    return Handler


def main():
    """Load the detector and serve until stopped."""
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
