"""Figures for the dark: every ink stands out from the dark ground as it does from white paper.

The contrast of WCAG is kept, and the hue. So what is told apart by day is told apart by night, a colour that an arm of
one's own brings is treated as ours are, and a figure has no second set of colours that somebody must choose."""
import re
from functools import cache

GROUND = "#14181e"  # the page of the theme in the dark
BRIGHTEST = .8      # luminance of the brightest ink: pure white glares
WEIGHTS = (.2126, .7152, .0722)


def linear(colour):
    "#rrggbb as red, green and blue light, from 0 to 1."
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= .04045 else ((c + .055) / 1.055)**2.4 for c in parts]


def as_hex(light):
    "Red, green and blue light as #rrggbb."
    parts = [c * 12.92 if c <= .0031308 else 1.055 * c**(1 / 2.4) - .055 for c in light]
    return "#" + "".join(f"{round(255 * c):02x}" for c in parts)


def luminance(colour): return sum(w * c for w, c in zip(WEIGHTS, linear(colour), strict=True))


def contrast(one, other):
    "The contrast of two colours after WCAG, from 1 to 21."
    dim, bright = sorted((luminance(one), luminance(other)))
    return (bright + .05) / (dim + .05)


@cache
def dark(colour):
    "The ink that stands for `colour` on the dark ground; white paper becomes the ground itself."
    if contrast(colour, "#ffffff") == 1: return GROUND
    wanted = min(contrast(colour, "#ffffff") * (luminance(GROUND) + .05) - .05, BRIGHTEST)
    light, now = linear(colour), luminance(colour)
    if now == 0: return as_hex([wanted] * 3)
    brighter = [c * wanted / now for c in light]
    most = max(brighter)
    if most <= 1: return as_hex(brighter)
    full = [c / most for c in brighter]  # as bright as this hue can be; white does the rest
    share = (wanted - wanted / most) / (1 - wanted / most)
    return as_hex([c + share * (1 - c) for c in full])


def dark_figure(svg):
    "A figure that matplotlib wrote, for the dark. Letters have no ink of their own there, and are black by default."
    inks = re.sub(r"\b(fill|stroke|stop-color): (#[0-9a-f]{6})\b", lambda m: f"{m[1]}: {dark(m[2])}", svg)
    return inks.replace('<style type="text/css">', f'<style type="text/css">svg{{fill: {dark("#000000")}}} ', 1)
