"""Draw the images of synthpedes: a scene (view, pose, light, background, ...) and a person in it.

Drawing uses Pillow polygons at about twice the image's resolution. Coordinates are in *body heights*: y is 0 at the top
of the head and 1 at the soles; x is 0 at the body's axis and positive to the right of the image.
"""
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datasets.synthpedes.people import HAIR, SKIN, TONES
from utils.seeding import derive_seed

BACKGROUNDS = ('street', 'wall', 'grass', 'crossing', 'indoor')
_NOISE = np.random.RandomState(0).normal(0, 1, (1024, 1024)).astype(np.float32)


@dataclass
class Scene:
    """How one image shows a person. Neither the image nor its captions show the slots in ``hidden``."""
    view: str          # front, back, side
    facing: int        # side: 1 looks right, -1 left
    walking: bool
    stride: float      # -1..1, phase of the step
    swing: float       # arms, 0..1
    scale: float       # body height / image height
    left: float        # body axis / image width
    top: float         # top of the head / image height
    light: tuple       # gain of R, G, B: exposure and the camera's tint
    gradient: float    # decrease of the light to one side
    blur: float        # in 1/1000 of the image height
    noise: float
    background: str
    occluder: str      # none, pole, bush, car, person
    hidden: tuple
    seed: int          # of everything that captions do not describe
    quality: int       # of the JPEG


def sample_scene(seed, view, tint=0.35, occlusion=0.15):
    """Sample a scene. :data:`datasets.synthpedes.writing.DIFFICULTY_OPTIONS` describes ``tint`` and ``occlusion``."""
    rng = random.Random(seed)
    exposure = 0.93 * math.exp(rng.gauss(0, 0.3 * tint))
    light = tuple(exposure * math.exp(rng.gauss(0, 0.11 * tint)) for _ in range(3))
    scale, occluder, hidden = rng.uniform(0.76, 0.95), 'none', ()
    top = rng.uniform(0.015, 0.985 - scale)
    if rng.random() < 0.5 * occlusion:  # cropped at the ankles
        scale, top, hidden = rng.uniform(1.0, 1.06), 0.02, ('shoes',)
    if rng.random() < occlusion:
        occluder = rng.choice(('pole', 'bush', 'car', 'person'))
        hidden = ('shoes',) if occluder in ('bush', 'car') else hidden
    return Scene(view, rng.choice((-1, 1)), rng.random() < 0.7, rng.uniform(-1, 1), rng.random(), scale,
                 rng.uniform(0.42, 0.58), top, light, rng.uniform(-0.5, 0.5) * tint, rng.uniform(0, 3),
                 rng.uniform(1, 6), rng.choice(BACKGROUNDS), occluder, hidden, derive_seed(seed, 1),
                 rng.randint(78, 93))


def _mix_colors(a, b, fraction):
    return tuple(int(x + (y - x) * fraction) for x, y in zip(a, b))


def _darken(rgb, fraction=0.35):
    return _mix_colors(rgb, (0, 0, 0), fraction)


def _seam_color(rgb):
    """A color for lines that are visible on ``rgb``."""
    return _mix_colors(rgb, (0, 0, 0) if sum(rgb) > 150 else (255, 255, 255), 0.3)


def _mirror(*right):
    """Complete a symmetric polygon from its right half, which is given from top to bottom."""
    return [*right, *((-x, y) for x, y in reversed(right))]


def _interpolate(p, q, fraction):
    return p[0] + (q[0] - p[0]) * fraction, p[1] + (q[1] - p[1]) * fraction


class Palette:
    """The exact colors that one identity wears: each slot's tone, shifted the same direction in all of its images."""

    def __init__(self, seed, shades):
        self.seed, self.spread = seed, 34 * shades

    def __call__(self, slot, rgb):
        rng = random.Random(derive_seed(self.seed, *slot.encode()))
        lighter = rng.gauss(0, self.spread * 0.7)
        hue = self.spread * (0.5 if max(rgb) - min(rgb) > 40 else 0.15)  # shifted grays must stay gray
        return tuple(int(min(250, max(8, c + lighter + rng.gauss(0, hue)))) for c in rgb)

    def tone(self, slot, tone):
        return self(slot, TONES[tone][0])


class Canvas:
    """An image with colors (RGBA) and shading (L, 128 = unchanged), drawn from back to front."""

    def __init__(self, width, height, unit, left, top, lit):
        self.unit, self.left, self.top, self.lit = unit, left, top, lit
        self.color, self.shade = Image.new('RGBA', (width, height)), Image.new('L', (width, height), 128)
        self.draw, self.tone = ImageDraw.Draw(self.color), ImageDraw.Draw(self.shade)

    def to_pixels(self, points):
        return [(self.left + x * self.unit, self.top + y * self.unit) for x, y in points]

    def bounding_box(self, x, y, rx, ry):
        return [(self.left + (x - rx) * self.unit, self.top + (y - ry) * self.unit),
                (self.left + (x + rx) * self.unit, self.top + (y + ry) * self.unit)]

    def _paint(self, draw_shape, fill):
        """Paint a shape with ``fill``: a color, or a texture, which is an image of the canvas's size."""
        if isinstance(fill, tuple):
            draw_shape(self.draw, fill)
            return
        mask = Image.new('L', self.color.size)
        draw_shape(ImageDraw.Draw(mask), 255)
        box = mask.getbbox()
        if box:
            self.color.paste(fill.crop(box), box, mask.crop(box))

    def polygon(self, points, fill):
        """Draw a panel of a garment, lit along its middle and darker at its left and right."""
        self._paint(lambda draw, ink: draw.polygon(self.to_pixels(points), ink), fill)
        middle = (min(x for x, _ in points) + max(x for x, _ in points)) / 2
        for fraction, level in ((1, 100), (0.8, 120), (0.5, 134)):
            shift = self.lit * (1 - fraction) * 0.03
            self.tone.polygon(self.to_pixels([(middle + (x - middle) * fraction + shift, y) for x, y in points]), level)

    def limb(self, joints, widths, fill):
        """Draw a tapering tube through ``joints``."""
        shapes = []
        for (p, q), (wide, narrow) in zip(zip(joints, joints[1:]), zip(widths, widths[1:])):
            dx, dy = q[0] - p[0], q[1] - p[1]
            length = math.hypot(dx, dy) or 1
            shapes.append((p, q, -dy / length, dx / length, wide / 2, narrow / 2))

        def shape(draw, ink, fraction=1.0, shift=0.0):
            for (px, py), (qx, qy), nx, ny, a, b in shapes:
                a, b = a * fraction, b * fraction
                draw.polygon(self.to_pixels([(px + nx * a + shift, py + ny * a), (qx + nx * b + shift, qy + ny * b),
                                      (qx - nx * b + shift, qy - ny * b), (px - nx * a + shift, py - ny * a)]), ink)
                draw.ellipse(self.bounding_box(px + shift, py, a, a), ink)
                draw.ellipse(self.bounding_box(qx + shift, qy, b, b), ink)
        self._paint(shape, fill)
        for fraction, level in ((1, 98), (0.75, 120), (0.4, 136)):
            shape(self.tone, level, fraction, self.lit * (1 - fraction) * 0.012)

    def ellipse(self, x, y, rx, ry, fill, level=122):
        self._paint(lambda draw, ink: draw.ellipse(self.bounding_box(x, y, rx, ry), ink), fill)
        self.tone.ellipse(self.bounding_box(x, y, rx, ry), level)

    def chord(self, x, y, rx, ry, start, end, fill):
        self.draw.chord(self.bounding_box(x, y, rx, ry), start, end, fill)

    def line(self, points, fill, width, level=None):
        self.draw.line(self.to_pixels(points), fill, max(1, round(width * self.unit)), joint='curve')
        if level:
            self.tone.line(self.to_pixels(points), level, max(1, round(width * self.unit)))

    def fold(self, points, level, width=0.008):
        self.tone.line(self.to_pixels(points), level, max(1, round(width * self.unit)))

    def texture(self, pattern, first, second, period=0.06):
        """Draw a pattern in a garment's colors: an image of the canvas's size."""
        image = Image.new('RGBA', self.color.size, first)
        draw = ImageDraw.Draw(image)

        def rectangle(x0, y0, x1, y1, ink):
            draw.rectangle([*self.to_pixels([(x0, y0)])[0], *self.to_pixels([(x1, y1)])[0]], ink)
        rows = [i * period for i in range(int(1 / period))]
        columns = [i * period - 0.3 for i in range(int(0.6 / period))]
        if pattern == 'striped':
            for y in rows:
                rectangle(-0.3, y, 0.3, y + period * 0.45, second)
        elif pattern == 'checked':
            half = _mix_colors(first, second, 0.5)
            for y in rows:
                rectangle(-0.3, y, 0.3, y + period * 0.5, half)
            for x in columns:
                rectangle(x, 0, x + period * 0.5, 1, half)
            for y in rows:
                for x in columns:
                    rectangle(x, y, x + period * 0.5, y + period * 0.5, second)
        elif pattern == 'dotted':
            for i, y in enumerate(rows):
                for x in columns:
                    draw.ellipse(self.bounding_box(x + period / 2 * (i % 2), y, period * 0.26, period * 0.26), second)
        elif pattern == 'two-tone':
            rectangle(-0.3, 0.345, 0.3, 1, second)
        return image


class Figure:
    """Draws one person in one scene on a canvas."""

    def __init__(self, canvas, person, scene, palette, rng):
        self.canvas, self.person, self.scene, self.palette, self.rng = canvas, person, scene, palette, rng
        wide = {'slim': 0.86, 'average': 1.0, 'heavy': 1.2}[person['build']]
        man = person['gender'] == 'man'
        self.side, self.facing = scene.view == 'side', scene.facing
        self.skin = palette('skin', SKIN[person['skin']])
        self.hair = palette('hair', HAIR[person['hair']['colour']]) if person['hair']['colour'] else self.skin
        if self.side:
            self.shoulder, self.chest, self.waist, self.hip = 0.062 * wide, 0.076 * wide, 0.068 * wide, 0.078 * wide
        else:
            self.shoulder, self.chest = (0.122 if man else 0.108) * wide, (0.112 if man else 0.1) * wide
            self.waist, self.hip = (0.1 if man else 0.083) * wide, (0.1 if man else 0.106) * wide
        self.wide = wide
        self.crotch = {'short': 0.54, 'average': 0.525, 'tall': 0.505}[person['height']]

    # --- colors ---

    def garment_fill(self, slot):
        thing = self.person[slot]
        first = self.palette.tone(slot, thing['colour'])
        pattern = thing.get('pattern', 'plain')
        if pattern in ('plain', 'logo') or (slot == 'lower' and pattern == 'striped'):
            return first
        return self.canvas.texture(pattern, first, self.palette.tone(slot + '2', thing['second']))

    # --- legs ---

    def leg_joints(self):
        """Hip, knee and ankle of both legs, the farther leg first."""
        s, knee, ankle = self.scene, 0.74, 0.94
        step = s.stride if s.walking else 0.18 * s.stride
        if self.side:
            joints = []
            for sign in (-1, 1):
                swing = sign * step * 0.11
                behind = swing * self.facing < 0
                bend = 0.035 * abs(step) * (1 if behind else 0.3) * self.facing
                foot = (swing * 1.55 - bend * 0.6, ankle - (0.035 * abs(step) if behind else 0))
                joints.append([(0.006 * sign, self.crotch - 0.03), (swing * 0.9 + bend, knee - 0.006 * abs(step)),
                               foot])
            return joints
        gap = self.hip * 0.5
        joints = []
        for sign in (-1, 1):
            raised = max(0.0, sign * step) * 0.03
            joints.append([(sign * gap, self.crotch - 0.03), (sign * (gap + 0.004) + step * 0.006, knee - raised * 0.5),
                          (sign * (gap - 0.004 * abs(step) + 0.006 * (1 - s.swing)), ankle - raised)])
        return joints

    def draw_legs(self):
        lower, upper = self.person['lower'], self.person['upper']
        kind = lower['kind'] if lower else 'dress'
        length = (lower or upper)['length']
        fill = self.garment_fill('lower') if lower else None
        thigh, calf, ankle = 0.084 * self.wide, 0.056 * self.wide, 0.036 * self.wide
        for hip, knee, foot in self.leg_joints():
            self.canvas.limb([hip, knee, foot], [thigh, calf, ankle], self.skin)
            self.draw_shoe(foot)
            if kind in ('trousers', 'jeans', 'leggings'):
                hem = foot if length == 'long' else _interpolate(knee, foot, 0.62)
                loose = self.wide * {'trousers': 1.0, 'jeans': 0.9, 'leggings': 0.68}[kind]
                self.canvas.limb([hip, knee, hem], [thigh * 1.12, 0.07 * loose + 0.006, 0.066 * loose], fill)
                self.draw_trouser_details(hip, knee, hem)
            elif kind == 'shorts':
                hem = _interpolate(hip, knee, 0.62 if length == 'short' else 1.0)
                self.canvas.limb([hip, hem], [thigh * 1.16, thigh * 1.08], fill)
                self.draw_trouser_details(hip, hem, hem)
        if kind in ('skirt', 'dress'):
            self.draw_skirt(length, fill or self.garment_fill('upper'))
        else:
            self.canvas.polygon(_mirror((self.waist, 0.44), (self.hip * 1.03, self.crotch + 0.005)), fill)

    def draw_trouser_details(self, hip, knee, hem):
        lower = self.person['lower']
        for _ in range(2):
            y = knee[1] + self.rng.uniform(-0.02, 0.03)
            self.canvas.fold([(knee[0] - 0.025, y), (knee[0] + 0.02, y + self.rng.uniform(-0.01, 0.015))], 96)
        if lower['pattern'] == 'striped':
            x = 0.0 if self.side else 0.03 * self.wide * (1 if hip[0] > 0 else -1)
            points = [(hip[0] + x, hip[1]), (knee[0] + x, knee[1]), (hem[0] + x * 0.8, hem[1])]
            self.canvas.line(points, self.palette.tone('lower2', lower['second']), 0.018)

    def draw_skirt(self, length, fill):
        hem = {'short': 0.645, 'knee-length': 0.745, 'long': 0.9}[length]
        flare = {'short': 1.2, 'knee-length': 1.3, 'long': 1.4}[length]
        flare += 0.25 if self.side and self.scene.walking else 0
        points = _mirror((self.waist, 0.41), (self.hip * 1.04, 0.5), (self.hip * flare, hem), (0, hem + 0.01))
        self.canvas.polygon(points, fill)
        for i in range(4):
            x = (i - 1.5) * self.hip * 0.5
            self.canvas.fold([(x * 0.8, 0.52), (x * flare * 0.95, hem)], 104 if i % 2 else 96)

    def draw_shoe(self, foot):
        shoes, (x, y) = self.person['shoes'], foot
        color = self.palette.tone('shoes', shoes['colour'])
        if shoes['kind'] == 'boots':
            self.canvas.limb([(x, y - 0.08), (x, y + 0.02)], [0.056 * self.wide] * 2, color)
        if self.side:
            shape = [(-0.026, -0.012), (0.02, -0.014), (0.07, 0.026), (0.074, 0.05), (-0.03, 0.05)]
            points = [(x + self.facing * dx, y + dy) for dx, dy in shape]
        else:
            points = [(x + dx, y + dy) for dx, dy in _mirror((0.025, -0.012), (0.036, 0.045), (0.019, 0.056))]
        if shoes['kind'] == 'sandals':
            self.canvas.polygon(points, self.skin)
            self.canvas.line([(x - 0.03, y + 0.05), (x + 0.03, y + 0.05)], color, 0.012)
            self.canvas.line([(x - 0.03, y + 0.008), (x + 0.03, y + 0.02)], color, 0.014)
            return
        self.canvas.polygon(points, color)
        if shoes['kind'] == 'sneakers':
            sole = points[3:5] if self.side else [points[1], points[4]]
            self.canvas.line(sole, (225, 225, 222) if shoes['colour'] != 'white' else (150, 150, 150), 0.01)

    # --- torso and arms ---

    def torso_outline(self, hem, grow=1.0):
        s, c, w, h = (v * grow for v in (self.shoulder, self.chest, self.waist, self.hip))
        low = h * 1.04 if hem > 0.47 else w
        return _mirror((0.035, 0.148), (s * 0.85, 0.165), (s, 0.19), (c, 0.27), (w, 0.4), (low, min(hem, 0.5)),
                     (low * 1.02, hem))

    def arm_joints(self):
        """Shoulder, elbow and hand of both arms, the farther arm first."""
        s, joints = self.scene, []
        for sign in (-1, 1):
            is_raised = sign == self.hand and self.person['held'] in ('phone', 'paper', 'cup')
            if self.side:
                swing = sign * s.stride * (0.07 if s.walking else 0.02) * (0.4 + s.swing) * -1
                elbow = (swing, 0.345)
                hand = (swing * 1.6 + 0.035 * self.facing, 0.475)
                if is_raised:
                    elbow, hand = (0.0, 0.35), (0.105 * self.facing, 0.33)
                joints.append([(0.0, 0.2), elbow, hand])
            else:
                x = sign * (self.shoulder - 0.012)
                out = sign * (0.012 + 0.028 * s.swing)
                elbow, hand = (x + out, 0.34), (x + out * (1.3 - s.swing), 0.48)
                if is_raised:
                    elbow, hand = (x + sign * 0.02, 0.345), (x - sign * (0.02 if s.view == 'front' else -0.035), 0.34)
                joints.append([(x, 0.195), elbow, hand])
        return joints

    def draw_arm(self, joints):
        shoulder, elbow, hand = joints
        person, jacket = self.person, self.person['jacket']
        top, low = 0.056 * self.wide, 0.04 * self.wide
        self.canvas.limb(joints, [top, low * 1.05, low * 0.85], self.skin)
        self.canvas.ellipse(hand[0], hand[1] + 0.012, 0.021, 0.026, self.skin)
        sleeves = 'long' if jacket and jacket['kind'] != 'vest' else person['upper']['sleeves']
        fill = self.jacket_fill if jacket and jacket['kind'] != 'vest' else self.upper_fill
        if sleeves == 'long':
            cuff = _interpolate(elbow, hand, 0.93)
            self.canvas.limb([shoulder, elbow, cuff], [top * 1.05, low * 1.4, low * 1.25], fill)
            self.canvas.fold([(elbow[0] - 0.02, elbow[1]), (elbow[0] + 0.02, elbow[1] + 0.01)], 92)
        elif sleeves == 'short':
            self.canvas.limb([shoulder, _interpolate(shoulder, elbow, 0.7)], [top * 1.05, top * 1.2], fill)

    def draw_upper(self):
        upper, kind = self.person['upper'], self.person['upper']['kind']
        hem = 0.45 if kind == 'dress' else {'shirt': 0.52, 'blouse': 0.5, 'tank top': 0.5}.get(kind, 0.525)
        self.canvas.polygon(self.torso_outline(hem), self.upper_fill)
        for _ in range(4):
            x, y = self.rng.uniform(-0.06, 0.06), self.rng.uniform(0.3, 0.47)
            end = (x + self.rng.uniform(-0.05, 0.05), y + self.rng.uniform(0.01, 0.05))
            self.canvas.fold([(x, y), end], self.rng.choice((98, 104, 142)))
        front, rgb = self.scene.view == 'front', self.palette.tone('upper', upper['colour'])
        dark = _darken(rgb)
        if kind == 'hoodie':
            hood = _mirror((0.055, 0.15), (0.07, 0.185), (0, 0.215 if front else 0.245))
            self.canvas.polygon(hood, _darken(rgb, 0.18))
            if front:
                self.canvas.line([(-0.06, 0.42), (0.06, 0.42)], dark, 0.006)
        if front and kind in ('shirt', 'polo shirt', 'blouse'):
            self.canvas.line([(0, 0.17), (0, 0.26 if kind == 'polo shirt' else hem - 0.01)], dark, 0.005)
            self.canvas.polygon([(-0.05, 0.15), (-0.005, 0.19), (-0.03, 0.2)], _mix_colors(rgb, (255, 255, 255), 0.25))
            self.canvas.polygon([(0.05, 0.15), (0.005, 0.19), (0.03, 0.2)], _mix_colors(rgb, (255, 255, 255), 0.25))
        elif front and kind in ('T-shirt', 'tank top', 'dress'):
            deep = 0.035 if kind == 'T-shirt' else 0.055
            self.canvas.ellipse(0, 0.155, 0.035, deep, self.skin, 112)
        if front and upper['pattern'] == 'logo':
            self.draw_logo(self.palette.tone('upper2', upper['second']))
        if kind in ('sweater', 'hoodie'):
            self.canvas.line([(-self.hip, hem - 0.012), (self.hip, hem - 0.012)], dark, 0.005)

    def draw_logo(self, rgb):
        kind = derive_seed(self.palette.seed, 9) % 3
        if kind == 0:
            self.canvas.ellipse(0, 0.275, 0.05, 0.045, rgb)
        elif kind == 1:
            self.canvas.polygon([(-0.055, 0.24), (0.055, 0.24), (0.055, 0.31), (-0.055, 0.31)], rgb)
        else:
            self.canvas.polygon([(0, 0.225), (0.06, 0.31), (-0.06, 0.31)], rgb)

    def draw_jacket(self):
        jacket = self.person['jacket']
        hem = {'waist': 0.5, 'hip': 0.56, 'knee': 0.73}[jacket['length']]
        outline = self.torso_outline(hem, 1.08)
        dark = _darken(self.jacket_fill)
        if self.scene.view == 'back':
            self.canvas.polygon(outline, self.jacket_fill)
            self.canvas.fold([(0, 0.3), (0, hem)], 110)
            return
        if self.side:
            gap = 0.25 * self.chest * self.facing  # the front edge stays open
            panel = [(x if x * self.facing < gap * self.facing else gap + (x - gap) * 0.35, y) for x, y in outline]
            self.canvas.polygon(panel, self.jacket_fill)
            self.canvas.line([(gap * 1.3, 0.2), (gap * 1.6, hem)], dark, 0.006)
            return
        for sign in (-1, 1):
            edge = [(sign * 0.02, 0.15), (sign * 0.045, 0.3), (sign * 0.05, hem)]
            outer = [(x, y) for x, y in outline if x * sign > 0.03]
            outer = sorted(outer, key=lambda p: p[1])
            self.canvas.polygon([edge[0], *outer, edge[2], edge[1]], self.jacket_fill)
            self.canvas.line(edge, dark, 0.007)

    # --- head ---

    def draw_head(self):
        hair, view, d, c = self.person['hair'], self.scene.view, self.facing, self.canvas
        rx, ry, y = (0.053, 0.066, 0.072) if self.side else (0.047, 0.066, 0.072)
        bald, long = hair['length'] == 'bald', {'shoulder-length': 0.185, 'long': 0.27}.get(hair['length'], 0)
        loose = long if hair['style'] == 'loose' else 0
        if view == 'back':
            c.ellipse(0, y, rx, ry, self.skin)
            if not bald:
                c.ellipse(0, y - 0.008, rx * 1.1, ry * 1.02, self.hair, 116)
                if loose:
                    c.polygon(_mirror((rx * 1.1, y), (rx * 1.2, loose - 0.02), (0, loose + 0.01)), self.hair)
                self.draw_knot(0)
            return
        if view == 'front':
            c.ellipse(0, y, rx, ry, self.skin)
            for x in (-0.018, 0.018):
                c.ellipse(x, y + 0.0, 0.006, 0.004, (40, 32, 30), 128)
            c.line([(-0.014, y + 0.038), (0.014, y + 0.038)], _mix_colors(self.skin, (120, 20, 20), 0.5), 0.007)
            if not bald:
                c.chord(0, y - 0.006, rx * 1.12, ry * 1.06, 200, 340, self.hair)
                if loose:
                    for sign in (-1, 1):
                        lock = [(0.75, y - 0.035), (1.12, y - 0.03), (1.35, loose), (0.7, loose)]
                        c.polygon([(sign * rx * x, at) for x, at in lock], self.hair)
                elif hair['style'] == 'bun':
                    c.ellipse(0, y - 0.074, 0.026, 0.02, self.hair)
                elif hair['style'] == 'ponytail':
                    c.limb([(rx * 0.9, y + 0.03), (rx * 1.25, 0.2)], [0.022, 0.018], self.hair)
            return
        c.ellipse(0, y, rx, ry, self.skin)
        c.polygon([(d * rx * 0.85, y - 0.012), (d * (rx + 0.014), y + 0.014), (d * rx * 0.85, y + 0.02)], self.skin)
        c.ellipse(d * rx * 0.66, y - 0.004, 0.006, 0.004, (40, 32, 30), 128)
        if not bald:
            c.chord(-d * 0.004, y - 0.007, rx * 1.1, ry * 1.06, *((90, 325) if d > 0 else (215, 450)), self.hair)
            if loose:
                c.polygon([(-d * rx * 1.1, y - 0.01), (0, y - 0.02), (-d * 0.002, loose), (-d * rx * 1.35, loose)],
                          self.hair)
            self.draw_knot(-d)

    def draw_knot(self, direction):
        """Draw a ponytail or a bun at the back of the head.

        ``direction`` is the sign of its x coordinate, 0 in the view from behind.
        """
        style = self.person['hair']['style']
        if style == 'ponytail':
            x = 0.056 * direction
            self.canvas.limb([(x, 0.05), (x * 1.5, 0.14), (x * 1.35, 0.26)], [0.034, 0.04, 0.016], self.hair)
        elif style == 'bun':
            self.canvas.ellipse(0.058 * direction, 0.04 if direction else 0.035, 0.031, 0.031, self.hair, 104)

    def draw_face_accessories(self):
        c, d, y = self.canvas, self.facing, 0.072
        glasses, view = self.person['glasses'], self.scene.view
        ink = (20, 20, 24)
        if glasses and view == 'front':
            for x in (-0.021, 0.021):
                if glasses == 'sunglasses':
                    c.ellipse(x, y, 0.019, 0.014, ink, 128)
                else:
                    c.draw.ellipse(c.bounding_box(x, y, 0.018, 0.014), None, ink, max(1, round(0.006 * c.unit)))
            c.line([(-0.046, y - 0.003), (0.046, y - 0.003)], ink, 0.005)
        elif glasses and view == 'side':
            if glasses == 'sunglasses':
                c.ellipse(d * 0.042, y - 0.002, 0.014, 0.014, ink, 128)
            else:
                box = c.bounding_box(d * 0.042, y - 0.002, 0.013, 0.014)
                c.draw.ellipse(box, None, ink, max(1, round(0.006 * c.unit)))
            c.line([(d * 0.035, y - 0.004), (-d * 0.01, y - 0.004)], ink, 0.006)
        if self.person['scarf']:
            rgb = self.palette.tone('scarf', self.person['scarf']['colour'])
            c.limb([(-0.035, 0.155), (0.035, 0.155)], [0.04, 0.04], rgb)
            if view != 'back':
                x = 0.025 if view == 'front' else 0.04 * d
                c.limb([(x, 0.16), (x + 0.005, 0.27)], [0.034, 0.038], rgb)
        if self.person['hat']:
            self.draw_hat(self.person['hat']['kind'], self.palette.tone('hat', self.person['hat']['colour']))

    def draw_hat(self, kind, rgb):
        c, d, view = self.canvas, self.facing, self.scene.view
        rx = 0.06 if self.side else 0.054
        dark = _darken(rgb, 0.3)
        c.chord(0, 0.05, rx, 0.062, 180, 360, rgb)
        c.tone.ellipse(c.bounding_box(0, 0.02, rx * 0.7, 0.025), 134)
        if kind == 'beanie':
            c.polygon([(-rx, 0.032), (rx, 0.032), (rx, 0.054), (-rx, 0.054)], _mix_colors(rgb, (255, 255, 255), 0.12))
        elif kind == 'sun hat':
            c.ellipse(0, 0.047, rx * 1.75, 0.018, rgb, 112)
            c.line([(-rx, 0.036), (rx, 0.036)], dark, 0.012)
        elif view == 'front':
            c.ellipse(0, 0.05, rx * 0.85, 0.014, dark, 118)
        elif view == 'side':
            c.polygon([(d * rx * 0.3, 0.04), (d * rx * 1.75, 0.05), (d * rx * 1.7, 0.058), (d * rx * 0.3, 0.054)], dark)
        else:
            c.line([(-rx * 0.6, 0.05), (rx * 0.6, 0.05)], dark, 0.008)

    # --- things carried ---

    def draw_backpack(self):
        c, d, view = self.canvas, self.facing, self.scene.view
        rgb = self.palette.tone('bag', self.person['bag']['colour'])
        dark = _seam_color(rgb)
        if view == 'back':
            c.polygon(_mirror((0.06, 0.175), (0.083, 0.21), (0.088, 0.4), (0.07, 0.425)), rgb)
            c.line([(-0.055, 0.32), (0.055, 0.32), (0.055, 0.4), (-0.055, 0.4), (-0.055, 0.32)], dark, 0.006)
            c.line([(-0.07, 0.24), (0, 0.225), (0.07, 0.24)], dark, 0.006)
        elif view == 'side':
            shape = [(0.05, 0.18), (0.12, 0.2), (0.155, 0.27), (0.155, 0.4), (0.12, 0.425), (0.055, 0.41)]
            c.polygon([(-d * x, y) for x, y in shape], rgb)
            c.line([(-d * 0.1, 0.3), (-d * 0.15, 0.3)], dark, 0.006)

    def draw_straps(self):
        bag, c, d = self.person['bag'], self.canvas, self.facing
        rgb = self.palette.tone('bag', bag['colour'])
        if bag['kind'] == 'backpack':
            if self.scene.view == 'front':
                for sign in (-1, 1):
                    c.line([(sign * 0.055, 0.155), (sign * 0.075, 0.27), (sign * 0.095, 0.36)], rgb, 0.024, 118)
            elif self.side:
                c.line([(-d * 0.03, 0.17), (d * 0.03, 0.22), (-d * 0.01, 0.33), (-d * 0.06, 0.37)], rgb, 0.02, 118)
        elif bag['kind'] == 'shoulder bag':
            sign = self.hand if self.scene.view == 'front' else -self.hand
            x = 0.02 * d if self.side else sign * (self.hip + 0.015)
            top = (-0.02 * d, 0.16) if self.side else (-sign * 0.07, 0.16)
            c.line([top, (x, 0.46)], _darken(rgb, 0.15), 0.016, 118)
            c.polygon([(x - 0.062, 0.44), (x + 0.062, 0.44), (x + 0.066, 0.54), (x - 0.066, 0.54)], rgb)
            c.line([(x - 0.06, 0.48), (x + 0.06, 0.48)], _seam_color(rgb), 0.006)

    def draw_handbag(self, hand):
        rgb, (x, y) = self.palette.tone('bag', self.person['bag']['colour']), hand
        handle = [(x + dx, y + dy) for dx, dy in _mirror((0.015, 0.02), (0.03, 0.06))]
        self.canvas.line([*handle, (x + 0.015, y + 0.02)],                    rgb, 0.009, 110)
        self.canvas.polygon([(x + dx, y + dy) for dx, dy in _mirror((0.052, 0.055), (0.062, 0.14))], rgb)
        self.canvas.line([(x - 0.05, y + 0.08), (x + 0.05, y + 0.08)], _seam_color(rgb), 0.006)

    def draw_held(self, hand):
        held, c, (x, y) = self.person['held'], self.canvas, hand

        def block(top, bottom, wide, narrow, rgb):
            c.polygon([(x + dx, y + dy) for dx, dy in _mirror((wide, top), (narrow, bottom))], rgb)
        if held == 'phone':
            block(-0.035, 0.015, 0.014, 0.014, (18, 18, 22))
        elif held == 'paper':
            block(-0.052, 0.037, 0.036, 0.04, (246, 246, 242))
        elif held == 'cup':
            block(-0.04, 0.015, 0.02, 0.014, (240, 238, 230))
            c.line([(x - 0.02, y - 0.04), (x + 0.02, y - 0.04)], (120, 80, 50), 0.009)
        elif held == 'bottle':
            block(-0.02, 0.075, 0.016, 0.016, (120, 190, 225))
            block(-0.038, -0.02, 0.008, 0.008, (240, 240, 240))
        else:
            tone = ('dark blue', 'red', 'black', 'green')[derive_seed(self.palette.seed, 8) % 4]
            c.line([(x - 0.006, y - 0.04), (x + 0.012, y + 0.3)], (90, 80, 74), 0.01, 110)
            c.limb([(x, y + 0.04), (x + 0.01, y + 0.24)], [0.04, 0.014], self.palette.tone('umbrella', tone))

    def draw(self):
        """Draw the person from back to front.

        An identity carries things in the same hand in all images. In the view from behind, this hand is at the other
        side of the image; in the side view, it is the near hand.
        """
        person, view, bag = self.person, self.scene.view, (self.person['bag'] or {}).get('kind')
        right = derive_seed(self.palette.seed, 7) % 2
        self.hand = 1 if view == 'side' or right == (view == 'front') else -1
        self.upper_fill = self.garment_fill('upper')
        self.jacket_fill = self.palette.tone('jacket', person['jacket']['colour']) if person['jacket'] else None
        far, near = self.arm_joints()
        if self.side:
            self.draw_arm(far)
            if bag == 'backpack':
                self.draw_backpack()
        self.draw_legs()
        self.canvas.limb([(0, 0.1), (0, 0.17)], [0.045, 0.055], self.skin)
        self.draw_upper()
        if person['jacket']:
            self.draw_jacket()
        for arm in (near,) if self.side else (far, near):
            self.draw_arm(arm)
        if bag == 'backpack' and view == 'back':
            self.draw_backpack()
        self.draw_head()
        self.draw_face_accessories()
        if bag:
            self.draw_straps()
        carrying, other = (near, far) if self.hand == 1 else (far, near)
        if bag == 'handbag':
            self.draw_handbag(carrying[-1] if self.side and not person['held'] else other[-1])
        if person['held']:
            self.draw_held(carrying[-1])


# --- background, occluders and light ------------------------------------------------------------------------------

def _sample_gray(rng, low, high, color=8):
    level = rng.uniform(low, high)
    return tuple(int(min(250, max(5, level + rng.uniform(-color, color)))) for _ in range(3))


def _draw_ground(draw, rng, width, height, horizon, ink):
    draw.rectangle([0, horizon, width, height], ink)
    for _ in range(3):
        y = horizon + (height - horizon) * rng.random()
        draw.line([(0, y), (width, y + rng.uniform(-0.05, 0.05) * height)], _darken(ink, 0.12), max(1, height // 150))


def _draw_street(draw, rng, width, height, horizon):
    facade = _mix_colors(_sample_gray(rng, 90, 190, 16), (150, 120, 95), rng.uniform(0, 0.5))
    draw.rectangle([0, 0, width, horizon], facade)
    window, size = _mix_colors(facade, (30, 40, 55), 0.55), width * rng.uniform(0.18, 0.3)
    for x in range(-1, 6):
        for y in range(3):
            left, top = x * size * 1.6 + size * 0.3, y * horizon * 0.36 + 0.05 * horizon
            draw.rectangle([left, top, left + size, top + horizon * 0.24], window)
    _draw_ground(draw, rng, width, height, horizon, _sample_gray(rng, 95, 165))


def _draw_wall(draw, rng, width, height, horizon):
    wall = _mix_colors(_sample_gray(rng, 110, 200, 10), (165, 110, 85), rng.uniform(0, 0.6))
    horizon = height * rng.uniform(0.72, 0.84)
    draw.rectangle([0, 0, width, horizon], wall)
    seam, row = _darken(wall, 0.16), height * rng.uniform(0.03, 0.06)
    for i in range(int(horizon / row) + 1):
        draw.line([(0, i * row), (width, i * row)], seam, max(1, height // 250))
        for j in range(5):
            x = (j + 0.5 * (i % 2)) * width * 0.28
            draw.line([(x, i * row), (x, (i + 1) * row)], seam, max(1, height // 250))
    _draw_ground(draw, rng, width, height, horizon, _sample_gray(rng, 100, 170))


def _draw_grass(draw, rng, width, height, horizon):
    draw.rectangle([0, 0, width, horizon], _mix_colors(_sample_gray(rng, 150, 215, 6), (190, 210, 225), 0.5))
    leaves = (rng.randint(50, 85), rng.randint(80, 115), rng.randint(45, 70))
    for _ in range(9):
        x, y, r = rng.random() * width, rng.uniform(0.2, 1) * horizon, rng.uniform(0.15, 0.4) * width
        draw.ellipse([x - r, y - r, x + r, y + r], _mix_colors(leaves, (0, 0, 0), rng.uniform(0, 0.35)))
    _draw_ground(draw, rng, width, height, horizon, (rng.randint(95, 130), rng.randint(125, 155), rng.randint(70, 95)))


def _draw_crossing(draw, rng, width, height, horizon):
    _draw_street(draw, rng, width, height, horizon * 0.8)
    road = _sample_gray(rng, 80, 125, 4)
    draw.rectangle([0, horizon * 0.8, width, height], road)
    paint, slope = _mix_colors(road, (235, 235, 230), 0.75), rng.uniform(-0.3, 0.3) * width
    y, step = horizon * 0.9, height * 0.035
    while y < height:
        draw.polygon([(-width * 0.1, y), (width * 1.1, y + slope * 0.3), (width * 1.1, y + slope * 0.3 + step),
                      (-width * 0.1, y + step)], paint)
        y, step = y + step * 2.1, step * 1.25


def _draw_indoor(draw, rng, width, height, horizon):
    wall = _sample_gray(rng, 165, 225, 10)
    horizon = height * rng.uniform(0.6, 0.75)
    draw.rectangle([0, 0, width, horizon], wall)
    door = rng.random() * width
    door_color = _mix_colors(wall, (120, 85, 60), rng.uniform(0.1, 0.6))
    draw.rectangle([door, height * 0.12, door + width * 0.4, horizon], door_color)
    draw.rectangle([0, height * 0.02, width, height * 0.035], _mix_colors(wall, (255, 255, 255), 0.7))
    floor = _mix_colors(wall, _sample_gray(rng, 110, 190), 0.7)
    draw.rectangle([0, horizon, width, height], floor)
    for i in range(-3, 9):
        draw.line([(width / 2 + (i - 2.5) * width * 0.2, horizon), (width / 2 + (i - 2.5) * width * 0.5, height)],
                  _darken(floor, 0.12), 1)


def _draw_passerby(draw, rng, x, y, size):
    """Draw another person without details. ``x, y`` is the top of the head, ``size`` the height in pixels."""
    upper, lower = (_mix_colors(TONES[rng.choice(list(TONES))][0], (110, 110, 110), 0.35) for _ in range(2))
    skin = SKIN[rng.choice(list(SKIN))]

    def part(points, ink, sign=1):
        draw.polygon([(x + sign * size * dx, y + size * dy) for dx, dy in points], ink)
    for sign in (-1, 1):
        part([(0, 0.48), (0.1, 0.48), (0.065, 0.98), (0.01, 0.98)], lower, sign)
        part([(0.08, 0.18), (0.12, 0.2), (0.15, 0.45), (0.115, 0.46)], _darken(upper, 0.15), sign)
    part(_mirror((0.03, 0.14), (0.115, 0.185), (0.1, 0.5)), upper)
    draw.ellipse([x - size * 0.05, y, x + size * 0.05, y + size * 0.14], skin)
    draw.chord([x - size * 0.053, y - size * 0.005, x + size * 0.053, y + size * 0.12], 180, 360, HAIR['black'])


def _draw_car(draw, rng, x, y, size):
    paint = TONES[rng.choice(('white', 'grey', 'black', 'red', 'blue', 'light grey'))][0]
    draw.rounded_rectangle([x, y, x + size, y + size * 0.3], size * 0.07, paint)
    draw.polygon([(x + size * 0.15, y), (x + size * 0.3, y - size * 0.17), (x + size * 0.72, y - size * 0.17),
                  (x + size * 0.88, y)], _mix_colors(paint, (20, 30, 40), 0.6))
    for fraction in (0.22, 0.78):
        draw.ellipse([x + size * (fraction - 0.08), y + size * 0.2, x + size * (fraction + 0.08), y + size * 0.38],
                     (25, 25, 27))


def draw_background(scene, width, height, clutter):
    rng = random.Random(derive_seed(scene.seed, 2))
    image = Image.new('RGB', (width, height))
    draw = ImageDraw.Draw(image)
    horizon = height * rng.uniform(0.4, 0.6)
    paint = {'street': _draw_street, 'wall': _draw_wall, 'grass': _draw_grass, 'crossing': _draw_crossing,
             'indoor': _draw_indoor}
    paint[scene.background](draw, rng, width, height, horizon)
    for kind in ('person', 'person', 'pole', 'car', 'sign'):
        if rng.random() > 0.7 * clutter:
            continue
        x = rng.random() * width
        if kind == 'person':
            _draw_passerby(draw, rng, rng.choice((-0.02, 0.1, 0.9, 1.02)) * width, horizon - height * 0.12,
                       height * rng.uniform(0.25, 0.5))
        elif kind == 'car' and scene.background in ('street', 'crossing', 'grass'):
            _draw_car(draw, rng, x - width * 0.6, horizon + height * 0.02, width * rng.uniform(0.7, 1.2))
        elif kind == 'pole':
            draw.rectangle([x, 0, x + width * 0.04, horizon + height * 0.1], _sample_gray(rng, 40, 150))
        elif kind == 'sign':
            draw.rectangle([x, height * 0.1, x + width * 0.2, height * 0.2], TONES[rng.choice(list(TONES))][0])
    return image.filter(ImageFilter.BoxBlur(height * rng.uniform(0.002, 0.007)))


def _draw_occluder(image, scene, rng):
    width, height = image.size
    draw = ImageDraw.Draw(image)
    if scene.occluder == 'pole':
        x = rng.uniform(0.2, 0.75) * width
        draw.rectangle([x, 0, x + width * 0.07, height], _sample_gray(rng, 50, 150))
        draw.line([(x + width * 0.02, 0), (x + width * 0.02, height)], (200, 200, 200), max(1, height // 200))
    elif scene.occluder == 'bush':
        for _ in range(14):
            x, y, r = rng.random() * width, rng.uniform(0.92, 1.02) * height, rng.uniform(0.07, 0.17) * width
            draw.ellipse([x - r, y - r, x + r, y + r], _mix_colors((60, 100, 50), (20, 40, 20), rng.random()))
    elif scene.occluder == 'car':
        _draw_car(draw, rng, -width * rng.uniform(0.1, 0.5), height * 0.9, width * 1.6)
    elif scene.occluder == 'person':
        _draw_passerby(draw, rng, rng.choice((-0.06, 1.06)) * width, height * rng.uniform(0.02, 0.12), height)


def render_image(person, scene, palette, size, clutter=0.5):
    """Draw a person in a scene.

    Args:
        person: the labels of an identity (:func:`datasets.synthpedes.people.sample_person`).
        scene: the :class:`Scene`.
        palette: the :class:`Palette` of the identity.
        size: (height, width) in pixels.
        clutter: the chance of objects in the background.

    Returns:
        A Pillow image in RGB.
    """
    height, width = size
    rng = random.Random(derive_seed(scene.seed, 3))
    factor = 2 if height > 160 else 3
    tall, wide = height * factor, width * factor
    canvas = Canvas(wide, tall, tall * scene.scale, wide * scene.left, tall * scene.top,
                    1 if scene.gradient > 0 else -1)
    Figure(canvas, person, scene, palette, rng).draw()
    color = canvas.color.reduce(factor)
    shade = canvas.shade.reduce(factor).filter(ImageFilter.BoxBlur(height * 0.006))
    image = draw_background(scene, width, height, clutter)
    ground = Image.new('L', (width, height))
    feet = (scene.top + scene.scale) * height
    ImageDraw.Draw(ground).ellipse([width * (scene.left - 0.28), feet - height * 0.025, width * (scene.left + 0.28),
                                    feet + height * 0.012], 110)
    image.paste((20, 20, 22), (0, 0), ground.filter(ImageFilter.BoxBlur(height * 0.008)))
    alpha = color.getchannel('A')
    lit = np.asarray(color.convert('RGB'), np.float32) * (np.asarray(shade, np.float32) / 128)[..., None]  # [H, W, 3]
    image.paste(Image.fromarray(lit.clip(0, 255).astype(np.uint8)), (0, 0), alpha)
    _draw_occluder(image, scene, rng)
    if scene.blur > 0.4:
        image = image.filter(ImageFilter.GaussianBlur(scene.blur * height / 1000))
    return _apply_light_and_noise(image, scene, rng)


def _apply_light_and_noise(image, scene, rng):
    """Apply light, tint and sensor noise."""
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    side = 1 + scene.gradient * np.linspace(-0.5, 0.5, width, dtype=np.float32)[:, None]
    rows, columns = (np.arange(n) + rng.randrange(1024) for n in (height, width))
    grain = _NOISE[np.ix_(rows % 1024, columns % 1024)]  # [H, W]
    pixels = pixels * (side * np.float32(scene.light)) + (grain * scene.noise)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
