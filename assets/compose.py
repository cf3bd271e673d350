"""Composes the traffic-sign images of this folder: our drawings of German signs, put onto CC0 and public-domain
photographs in the manner of a camera's crop. Same versions of Pillow and numpy, same bytes.

    python assets/compose.py --photos skimage/data      # the folder of scikit-image's wheel; see SOURCES.md
"""
import argparse
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

WHITE, RED, BLACK = (238, 239, 236), (188, 24, 30), (22, 22, 24)
SIGN_SIDE = 512        # a drawn sign, before perspective
SUPERSAMPLING = 4
UNITS = 100            # signs are drawn in hundredths of their width, y downwards


# ---- drawing -----------------------------------------------------------------------------------------------------

class Canvas:
    """Shapes in sign units, drawn large and reduced."""

    def __init__(self):
        side = SIGN_SIDE * SUPERSAMPLING
        self.scale = side / UNITS
        self.image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points, colour):
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=(*colour, 255))

    def disc(self, x, y, radius, colour):
        self.draw.ellipse([(c - radius) * self.scale for c in (x, y)] + [(c + radius) * self.scale for c in (x, y)], fill=(*colour, 255))

    def limb(self, joints, colour, blunt=False):
        """A chain of (x, y, width) with round joints, tapering between them; `blunt` cuts its two ends."""
        for (x0, y0, w0), (x1, y1, w1) in zip(joints, joints[1:]):
            length = math.hypot(x1 - x0, y1 - y0)
            nx, ny = -(y1 - y0) / length / 2, (x1 - x0) / length / 2
            self.polygon([(x0 + nx * w0, y0 + ny * w0), (x1 + nx * w1, y1 + ny * w1),
                          (x1 - nx * w1, y1 - ny * w1), (x0 - nx * w0, y0 - ny * w0)], colour)
        for x, y, width in joints[1:-1] if blunt else joints:
            self.disc(x, y, width / 2, colour)

    def stroke(self, points, width, colour, blunt=False):
        self.limb([(x, y, width) for x, y in points], colour, blunt)

    def reduced(self):
        return self.image.resize((SIGN_SIDE, SIGN_SIDE), Image.LANCZOS)


def arc(x, y, rx, ry, start, end):
    """Points of an ellipse's arc, in degrees clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 60))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def rounded_triangle(inset, corner):
    """The warning triangle, point up, `inset` inside its sharp outline, corners rounded."""
    cx, cy, inradius = 50, 57.6, 30.9 - inset
    points = []
    for direction in (-90, 30, 150):
        distance = 2 * (inradius - corner)
        x, y = cx + distance * math.cos(math.radians(direction)), cy + distance * math.sin(math.radians(direction))
        points += arc(x, y, corner, corner, direction - 60, direction + 60)
    return points


def warning_triangle():
    canvas = Canvas()
    canvas.polygon(rounded_triangle(0, 5.0), WHITE)
    canvas.polygon(rounded_triangle(2.2, 3.6), RED)
    canvas.polygon(rounded_triangle(10.0, 1.2), WHITE)
    return canvas


def road_work():
    """Zeichen 123, Arbeitsstelle: a man bent over a shovel, a heap at his right."""
    canvas = warning_triangle()
    canvas.polygon([(50.4, 72.6), (54.6, 68.6), (58.6, 64.6), (62.2, 61.0), (64.6, 59.8), (66.8, 60.4), (69.0, 63.8),
                    (71.6, 67.2), (75.2, 71.4), (75.4, 72.6)], BLACK)                                            # heap
    canvas.limb([(43.8, 54.2, 5.6), (38.0, 61.8, 4.8), (31.8, 71.0, 3.4)], BLACK)                                # back leg
    canvas.polygon([(30.2, 70.6), (33.4, 70.4), (35.4, 72.6), (29.8, 72.6)], BLACK)
    canvas.limb([(45.4, 54.4, 5.4), (47.4, 61.6, 4.6), (45.2, 71.0, 3.4)], BLACK)                                # front leg
    canvas.polygon([(43.6, 70.6), (46.8, 70.4), (49.2, 72.6), (43.4, 72.6)], BLACK)
    canvas.polygon([(42.2, 43.0), (45.4, 42.4), (49.6, 43.6), (50.6, 46.2), (48.4, 54.6), (46.2, 56.4), (42.4, 55.6),
                    (41.2, 53.4), (43.2, 47.8)], BLACK)                                                          # trunk
    canvas.limb([(44.0, 44.0, 3.6), (38.6, 45.4, 3.2), (36.8, 49.6, 2.6)], BLACK)                                # back arm
    canvas.stroke([(35.0, 48.4), (57.0, 64.8)], 3.2, WHITE)                                                      # shovel
    canvas.stroke([(35.0, 48.4), (57.0, 64.8)], 1.7, BLACK)
    canvas.polygon([(54.2, 61.2), (56.8, 61.6), (62.0, 66.8), (58.4, 69.0), (53.2, 64.4)], BLACK)
    canvas.limb([(49.0, 45.6, 3.4), (51.6, 52.6, 2.8), (50.2, 59.0, 2.6)], BLACK)                                # front arm
    canvas.disc(52.9, 41.0, 3.5, BLACK)                                                                          # head
    canvas.polygon([(48.6, 43.6), (51.0, 41.4), (53.0, 44.0), (50.2, 46.0)], BLACK)
    return canvas.reduced()


def caution():
    """Zeichen 101, Gefahrstelle: an exclamation mark."""
    canvas = warning_triangle()
    canvas.limb([(50, 36.4, 6.6), (50, 59.4, 4.0)], BLACK)
    canvas.disc(50, 68.6, 3.5, BLACK)
    return canvas.reduced()


def speed_limit_50():
    """Zeichen 274-50."""
    canvas = Canvas()
    for radius, colour in ((49, WHITE), (47, RED), (36, WHITE)):
        canvas.disc(50, 50, radius, colour)
    five = [(46.2, 33.4), (32.6, 33.4), (31.2, 49.6)] + arc(37.4, 56.4, 9.0, 11.4, -135, 138)
    canvas.stroke(five, 5.6, BLACK, blunt=True)
    zero = arc(63.2, 42.6, 8.6, 11.4, 180, 360) + arc(63.2, 56.4, 8.6, 11.4, 0, 180)
    canvas.stroke(zero + zero[:1], 5.6, BLACK)
    return canvas.reduced()


# ---- composing ---------------------------------------------------------------------------------------------------

@dataclass
class Scene:
    sign: object                      # draws it
    photo: str                        # a file of skimage/data
    crop: tuple                       # of the photograph: left, top, width; the height follows from `frame`
    frame: tuple                      # pixels of the result
    corners: tuple                    # where the sign's box lands, in shares of the frame: tl, tr, br, bl
    tint: dict = None                 # colours for the greys of a grey photograph
    depth: float = 0                  # blur of what lies behind the sign, in pixels of the result
    light: tuple = (1.0, 1.0)         # of the sign: at its left and right
    colour: tuple = (1.0, 1.0, 1.0)   # of the light on everything
    exposure: float = 1.0
    blur: float = 0.6                 # of the camera, in pixels of the result
    motion: float = 0                 # horizontal, in pixels of the result
    pixels: int = None                # the width that the sensor really saw
    noise: float = 2.5
    hedge: list = field(default_factory=list)   # (x, y, radius) of leaves in front, in shares of the frame
    quality: int = 88


def tinted(image, tint):
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    return Image.fromarray(np.stack([np.interp(grey, list(tint), channel) for channel in zip(*tint.values())], -1).astype(np.uint8))


def background(scene, photos):
    left, top, width = scene.crop
    height = width * scene.frame[1] / scene.frame[0]
    image = Image.open(photos / scene.photo)
    assert left + width <= image.width and top + height <= image.height, f"{scene.photo}: the crop leaves the photograph"
    image = image.convert("RGB").resize(scene.frame, Image.BICUBIC, (left, top, left + width, top + height))
    image = tinted(image, scene.tint) if scene.tint else image
    return image.filter(ImageFilter.GaussianBlur(scene.depth))


def perspective(source, target):
    """Coefficients for Image.transform, which asks where in `source` each point of `target` comes from."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows, float), np.array(values, float))


def clouds(shape, cells, rng):
    """Smooth noise about 0, for dirt and leaves."""
    small = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.BICUBIC))


def lit(sign, light, rng):
    """The sheet's shading from left to right, and dirt."""
    rgba = np.asarray(sign, dtype=np.float64).copy()
    shade = np.linspace(*light, rgba.shape[1])[None, :] * (1 + 0.025 * clouds(rgba.shape, 7, rng))
    rgba[..., :3] = np.clip(rgba[..., :3] * shade[..., None], 0, 255)
    return Image.fromarray(rgba.astype(np.uint8))


def with_sign(image, scene, rng):
    """A post, and the sign before it."""
    big = (image.width * 2, image.height * 2)
    corners = [(x * big[0], y * big[1]) for x, y in scene.corners]
    image = image.resize(big, Image.BICUBIC)
    centre, width = (corners[2][0] + corners[3][0]) / 2, abs(corners[1][0] - corners[0][0]) * 0.06
    for column in range(int(width)):  # a steel tube: bright in its middle
        grey = int(80 + 95 * math.sin(math.pi * (column + 0.5) / width) * scene.light[0])
        x = centre - width / 2 + column
        ImageDraw.Draw(image).line([(x, corners[0][1] + big[1] * 0.3), (x, big[1])], fill=(grey, grey, grey + 4), width=2)
    box = [(0, 0), (SIGN_SIDE, 0), (SIGN_SIDE, SIGN_SIDE), (0, SIGN_SIDE)]
    sign = lit(scene.sign(), scene.light, rng)
    premultiplied = Image.merge("RGBA", [ImageChops.multiply(c, sign.getchannel("A")) for c in sign.split()[:3]] + [sign.getchannel("A")])
    warped = premultiplied.transform(big, Image.PERSPECTIVE, perspective(box, corners), Image.BICUBIC)
    alpha = np.asarray(warped.getchannel("A"), float)[..., None] / 255
    pixels = np.asarray(image, float) * (1 - alpha) + np.asarray(warped.convert("RGBA"), float)[..., :3]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((big[0] // 2, big[1] // 2), Image.LANCZOS)


def with_hedge(image, scene, photos, rng):
    """Leaves cut from the photograph of grass, in front of the sign."""
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    for x, y, radius in scene.hedge:
        for _ in range(170):
            angle, distance = rng.uniform(0, 2 * math.pi), radius * math.sqrt(rng.uniform())
            cx, cy = (x + distance * math.cos(angle)) * image.width, (y + distance * math.sin(angle)) * image.height
            long, turn = image.width * rng.uniform(0.018, 0.04), rng.uniform(0, math.pi)
            leaf = [(cx + long * math.cos(t) * math.cos(turn) - long * 0.45 * math.sin(t) * math.sin(turn),
                     cy + long * math.cos(t) * math.sin(turn) + long * 0.45 * math.sin(t) * math.cos(turn))
                    for t in np.linspace(0, 2 * math.pi, 14)]
            draw.polygon(leaf, fill=255)
    leaves = Image.open(photos / "grass.png").resize(image.size, Image.BICUBIC, (0, 0, 256, 256 * image.height / image.width))
    leaves = tinted(leaves, FOLIAGE)
    return Image.composite(leaves, image, mask.filter(ImageFilter.GaussianBlur(0.7)))


def through_camera(image, scene, rng):
    """Light, exposure, motion, lens, sensor."""
    linear = (np.asarray(image, float) / 255) ** 2.2
    linear = linear * np.array(scene.colour) * scene.exposure
    if scene.motion:
        steps = np.arange(-scene.motion / 2, scene.motion / 2 + 0.5)
        linear = np.mean([np.roll(linear, round(s), axis=1) for s in steps], axis=0)
    image = Image.fromarray((np.clip(linear, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(scene.blur))
    if scene.pixels:
        image = image.resize((scene.pixels, round(scene.pixels * image.height / image.width)), Image.BOX)
    pixels = np.asarray(image, float)
    pixels = pixels + rng.normal(0, scene.noise, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize(scene.frame, Image.BICUBIC) if scene.pixels else image


def compose(name, scene, photos):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    image = with_sign(background(scene, photos), scene, rng)
    image = with_hedge(image, scene, photos, rng) if scene.hedge else image
    return through_camera(image, scene, rng)


BRICKS = {0: (40, 28, 24), 128: (140, 92, 74), 255: (214, 196, 180)}
FOLIAGE = {0: (8, 14, 8), 128: (62, 84, 40), 255: (214, 222, 160)}
MEADOW = {0: (22, 24, 20), 110: (96, 106, 66), 150: (150, 154, 124), 185: (176, 196, 220), 255: (232, 240, 248)}  # and sky

SCENES = {
    "road-work-clear.jpg": Scene(road_work, "camera.png", (352, 140, 160), (360, 320),
        ((0.10, 0.10), (0.91, 0.11), (0.92, 1.02), (0.09, 1.00)), tint=MEADOW, depth=1.5, light=(1.0, 0.93)),
    "road-work-dusk.jpg": Scene(road_work, "rocket.jpg", (0, 30, 240), (320, 288),
        ((0.12, 0.12), (0.87, 0.14), (0.88, 0.98), (0.10, 0.99)), depth=1.0, light=(0.75, 0.95), colour=(0.8, 0.9, 1.15),
        exposure=0.03, blur=1.2, noise=4),
    "road-work-far.jpg": Scene(road_work, "brick.png", (40, 60, 300), (192, 172),
        ((0.17, 0.15), (0.82, 0.12), (0.84, 0.87), (0.18, 0.89)), tint=BRICKS, depth=0.8, light=(0.9, 1.0),
        blur=2.0, motion=5, pixels=24, noise=5, hedge=[(0.3, 0.75, 0.34)]),
    "caution.jpg": Scene(caution, "grass.png", (100, 100, 300), (320, 288),
        ((0.08, 0.12), (0.90, 0.10), (0.91, 1.00), (0.10, 1.02)), tint=FOLIAGE, depth=1.4, light=(0.92, 1.0)),
    "speed-limit-50.jpg": Scene(speed_limit_50, "camera.png", (330, 60, 180), (300, 300),
        ((0.11, 0.10), (0.89, 0.12), (0.88, 0.88), (0.10, 0.90)), tint=MEADOW, depth=1.2, light=(1.0, 0.9)),
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--photos", type=Path, required=True, help="the folder skimage/data")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = arguments.parse_args()
    for name, scene in SCENES.items():
        path = given.out / name
        compose(name, scene, given.photos).save(path, quality=scene.quality, optimize=True)
        print(f"{path}  {scene.frame[0]}×{scene.frame[1]}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
