# small_rewards.py
import numpy as np

from afterflow import reward


@reward("blue", low=-255, high=255)
def blue(images, records):
    """How much bluer than red and green an image is: (B, H, W, 3) → (B,)."""
    return images[..., 2].mean((1, 2)) - images[..., :2].mean((1, 2, 3))


@reward("never", low=0, high=1)
def never(images, records):
    """1 where a whole image is black, which none ever is: (B, H, W, 3) → (B,)."""
    return (images.max((1, 2, 3)) == 0).astype(float)


@reward("fragile", low=0, high=1)
def fragile(images, records):
    """How light an image is, and nothing where it is lighter than .6: (B, H, W, 3) → (B,)."""
    light = images.mean((1, 2, 3)) / 255
    return np.where(light > 0.6, np.nan, light)
