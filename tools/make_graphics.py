"""Make pictures that are no photographs: screenshots, plots, scanned text, drawings. Nothing of them is shipped.

    python tools/make_graphics.py FOLDER

Writes FOLDER/KIND/NAME.png, the same ones each time for one seed. `tools/graphics_figures.py` measures `declip.images.scope`
on them. Needs `pip install 'declip[torch,dev]'` (matplotlib, Playwright) and `apt-get install chromium`.
"""

# ruff: noqa: E501, SIM905 – lines of HTML and lists of words

from __future__ import annotations

import argparse
import base64
import functools
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "examples" / "photos"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
KINDS = ("screenshot", "plot", "scan", "drawing")
WORDS = """
the of and to in is that for it was on are as with they be at one have this from by hot word but what some can
out other were all there when up use your how said an each she which do their time if will way about many then
them would write like so these her long make thing see him two has look more day could go come did my sound no
most number who over know water than call first people may down side been now find
""".split()
COLOURS = ("#0b6e4f", "#1f4e9e", "#a4133c", "#5a189a", "#b5651d", "#00798c", "#3d405b", "#e07a5f")
Random = np.random.Generator


# Screenshots


def sentence(random: Random, words: int) -> str:
    return " ".join(random.choice(WORDS, words)).capitalize() + "."


def paragraph(random: Random) -> str:
    return "<p>" + " ".join(sentence(random, int(random.integers(6, 18))) for _ in range(5)) + "</p>"


def photo(name: str) -> str:
    kind = "png" if name.endswith("png") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode((PHOTOS / name).read_bytes()).decode()}"


def html(body: str, *, style: str = "", dark: bool = False, font: str = "Liberation Sans") -> str:
    ink, paper = ("#d8dee9", "#1e222a") if dark else ("#222", "#fff")
    base = f"body{{margin:0;font:15px/1.5 '{font}';color:{ink};background:{paper}}}*{{box-sizing:border-box}}"
    return f"<!doctype html><meta charset=utf-8><style>{base}{style}</style>{body}"


def article(random: Random, *, dark: bool, picture: str = "", serif: bool = False, share: int = 40) -> str:
    image = f"<img src='{photo(picture)}' style='float:right;width:{share}%;margin:0 0 1em 1em'>" if picture else ""
    body = f"<main style='max-width:860px;margin:auto;padding:2em'><h1>{sentence(random, 6)}</h1>{image}"
    body += "".join(paragraph(random) for _ in range(7)) + "</main>"
    return html(body, dark=dark, font="Liberation Serif" if serif else "Liberation Sans")


def table(random: Random, *, dark: bool) -> str:
    style = "table{border-collapse:collapse;width:100%}td,th{border:1px solid #8886;padding:4px 9px}"
    style += "tr:nth-child(even){background:#8882}th{background:#4682b455}"
    cells = ""
    for _ in range(26):
        row = [random.choice(WORDS), *(f"{value:.2f}" for value in random.normal(50, 30, 7))]
        cells += f"<tr><td>{'</td><td>'.join(row)}</td></tr>"
    heads = "".join(f"<th>{random.choice(WORDS)}</th>" for _ in range(8))
    return html(f"<table><tr>{heads}</tr>{cells}</table>", style=style, dark=dark)


def code(random: Random, *, dark: bool) -> str:
    lines = []
    for number in range(38):
        indent = "&nbsp;" * 4 * int(random.integers(0, 4))
        words = [f"<span style='color:{random.choice(COLOURS)}'>{random.choice(WORDS)}</span>" for _ in range(5)]
        call = f"{words[0]} = {words[1]}({', '.join(words[2:])})"
        lines.append(f"<span style='color:#888'>{number:3d} </span>{indent}{call}")
    bar = "<div style='background:#3335;padding:6px'>main.py &nbsp; tests.py &nbsp; README.md</div>"
    side = "<div style='width:200px;padding:1em;background:#8883'>" + "<br>".join(random.choice(WORDS, 22)) + "</div>"
    body = f"{bar}<div style='display:flex'>{side}<div style='padding:1em;white-space:pre'>{'<br>'.join(lines)}</div></div>"
    return html(body, dark=dark, font="DejaVu Sans Mono")


def chat(random: Random, *, dark: bool, picture: str = "") -> str:
    bubbles = ""
    for turn in range(11):
        right = random.random() < 0.5
        colour = ("#2b5278" if right else "#2f3540") if dark else ("#d9fdd3" if right else "#f0f0f0")
        inner = sentence(random, int(random.integers(3, 20)))
        if picture and turn == 3:
            inner = f"<img src='{photo(picture)}' style='width:230px;border-radius:8px'><br>{inner}"
        bubbles += (
            f"<div style='display:flex;justify-content:{'end' if right else 'start'}'><div style='background:{colour};"
        )
        bubbles += f"border-radius:14px;padding:8px 14px;margin:5px 12px;max-width:70%'>{inner}"
        bubbles += f"<small style='opacity:.5'> 12:{random.integers(10, 60)}</small></div></div>"
    head = "<div style='background:#0a7c6a;color:#fff;padding:14px;font-size:19px'>&larr; Chris</div>"
    return html(head + bubbles, dark=dark)


def chart_svg(random: Random) -> str:
    width, height = 330, 170
    values = np.cumsum(random.normal(0, 9, 24)) + 80
    points = " ".join(f"{i * width / 23:.1f},{height - v:.1f}" for i, v in enumerate(values))
    bars = "".join(
        f"<rect x='{i * 28 + 4}' y='{height - h:.0f}' width=20 height='{h:.0f}' fill='{random.choice(COLOURS)}' opacity=.5 />"
        for i, h in enumerate(random.uniform(10, 90, 11))
    )
    return f"<svg width={width} height={height}>{bars}<polyline points='{points}' fill=none stroke='#e07a5f' stroke-width=3 /></svg>"


def dashboard(random: Random, *, dark: bool, gradient: bool = False) -> str:
    card = "background:#2a2f3a" if dark else "background:#fff"
    style = f".c{{{card};border-radius:10px;padding:14px;margin:10px;box-shadow:0 2px 10px #0003;display:inline-block}}"
    if gradient or not dark:
        style += f"body{{background:{'linear-gradient(135deg,#667eea,#764ba2)' if gradient else '#eef1f5'}}}"
    tiles = ""
    for _ in range(6):
        tiles += f"<div class=c><small>{random.choice(WORDS)}</small><h2>{random.integers(100, 99999):,}</h2></div>"
    charts = "".join(f"<div class=c>{chart_svg(random)}</div>" for _ in range(6))
    return html(tiles + charts, style=style, dark=dark)


def street_map(random: Random, *, tint: str) -> str:
    parts = f"<rect width=1280 height=800 fill='{tint}' />"
    for _ in range(14):
        x, y, w, h = random.uniform(0, 1200), random.uniform(0, 760), random.uniform(40, 260), random.uniform(40, 200)
        fill = random.choice(["#c8e6b9", "#aad3df", "#e8dcd0", "#d9d0c9", "#f2efe9"])
        parts += f"<rect x={x:.0f} y={y:.0f} width={w:.0f} height={h:.0f} rx=12 fill='{fill}' />"
    for _ in range(36):
        x, y = random.uniform(-100, 1380, 3), random.uniform(-100, 900, 3)
        wide = random.choice([3, 5, 9, 14])
        path = f"M{x[0]:.0f},{y[0]:.0f} Q{x[1]:.0f},{y[1]:.0f} {x[2]:.0f},{y[2]:.0f}"
        for colour, extra in (("#b9b2a8", 2), (random.choice(["#fff", "#fcd6a4", "#f7fabf"]), 0)):
            parts += f"<path d='{path}' fill=none stroke='{colour}' stroke-width={wide + extra} />"
    for _ in range(30):
        place = f"x={random.uniform(0, 1200):.0f} y={random.uniform(0, 800):.0f}"
        parts += f"<text {place} font-size=13>{random.choice(WORDS)}</text>"
    return html(f"<svg width=1280 height=800>{parts}</svg>")


def gallery(random: Random, columns: int) -> str:
    """A shop's or an album's page: photos with white between them."""
    names = sorted(path.name for path in PHOTOS.iterdir())
    cells = "".join(
        f"<div style='width:{90 // columns}%;display:inline-block;margin:12px;vertical-align:top'>"
        f"<img src='{photo(name)}' style='width:100%;aspect-ratio:4/3;object-fit:cover'>{sentence(random, 12)}</div>"
        for name in random.permutation(names)[: columns * 2]
    )
    return html(f"<h1 style='padding:0 12px'>{sentence(random, 4)}</h1>{cells}")


def terminal(random: Random) -> str:
    prompt = "<span style='color:#7c7'>user@host</span>:~$ "
    lines = "<br>".join(prompt + sentence(random, int(random.integers(2, 9))) for _ in range(34))
    screen = f"<div style='background:#000;color:#ccc;height:100vh;padding:8px'>{lines}</div>"
    return html(screen, font="DejaVu Sans Mono")


def form(random: Random, *, gradient: bool) -> str:
    fields = "".join(
        f"<label>{sentence(random, 3)}<br><input value='{random.choice(WORDS)}' style='width:100%;padding:8px'></label><br><br>"
        for _ in range(6)
    )
    back = "background:linear-gradient(#89f7fe,#66a6ff)" if gradient else "background:#f5f5f5"
    box = "background:#fff;max-width:480px;margin:40px auto;padding:28px;border-radius:16px;box-shadow:0 8px 40px #0004"
    body = f"<div style='{box}'><h2>{sentence(random, 3)}</h2>{fields}<button>OK</button></div>"
    return html(body, style=f"body{{{back}}}")


def slide(random: Random, colour: str) -> str:
    items = "".join(f"<li>{sentence(random, 7)}</li>" for _ in range(5))
    body = f"<div style='padding:60px;font-size:30px'><h1>{sentence(random, 3)}</h1><ul>{items}</ul></div>"
    return html(body, style=f"body{{background:{colour};color:#fff}}")


def pages(random: Random) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """(name, HTML, (width, height) of the window)."""
    desk, phone, small = (1280, 800), (390, 844), (900, 600)
    yield "article-light", article(random, dark=False), desk
    yield "article-dark", article(random, dark=True), desk
    yield "article-serif", article(random, dark=False, serif=True), small
    yield "article-photo-a", article(random, dark=False, picture="china-untouched.jpg"), desk
    yield "article-photo-b", article(random, dark=True, picture="coffee-untouched.jpg", share=60), desk
    yield "article-phone", article(random, dark=False), phone
    yield "table-light", table(random, dark=False), desk
    yield "table-dark", table(random, dark=True), small
    yield "code-dark", code(random, dark=True), desk
    yield "code-light", code(random, dark=False), desk
    yield "chat-light", chat(random, dark=False), phone
    yield "chat-dark", chat(random, dark=True), phone
    yield "chat-photo-a", chat(random, dark=False, picture="coffee-untouched.jpg"), phone
    yield "chat-photo-b", chat(random, dark=True, picture="rocket-telea.jpg"), phone
    yield "dashboard-light", dashboard(random, dark=False), desk
    yield "dashboard-dark", dashboard(random, dark=True), desk
    yield "dashboard-gradient-a", dashboard(random, dark=False, gradient=True), desk
    yield "dashboard-gradient-b", dashboard(random, dark=True, gradient=True), small
    yield "map-a", street_map(random, tint="#f2efe9"), desk
    yield "map-b", street_map(random, tint="#242f3e"), desk
    yield "gallery-3", gallery(random, 3), desk
    yield "gallery-2", gallery(random, 2), small
    yield "terminal", terminal(random), desk
    yield "form-gradient", form(random, gradient=True), small
    yield "form-flat", form(random, gradient=False), desk
    yield "slide-a", slide(random, "#1f4e9e"), desk
    yield "slide-b", slide(random, "linear-gradient(120deg,#0b6e4f,#00798c)"), desk


def screenshots(random: Random, folder: Path) -> None:
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        for number, (name, text, (width, height)) in enumerate(pages(random)):
            # Every third one as on a screen with twice the pixels.
            scale = 2 if number % 3 == 2 else 1
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
            page.set_content(text)
            page.screenshot(path=folder / f"{name}.png")
            page.close()
        browser.close()


# Plots


def plots(random: Random, folder: Path) -> None:
    t = np.linspace(0, 10, 300)

    def figure(name: str, size: tuple[float, float] = (6.4, 4.8), dpi: int = 150, face: str = "white") -> Figure:
        made.append((name, Figure(figsize=size, facecolor=face, layout="constrained"), dpi))
        return made[-1][1]

    made: list[tuple[str, Figure, int]] = []
    axes = figure("lines").subplots()
    for shift in range(4):
        axes.plot(t, np.sin(t + shift) * shift, label=f"series {shift}")
    axes.legend()
    axes.set_title("Sines")
    axes = figure("lines-dark", face="#111").subplots()
    axes.set_facecolor("#222")
    axes.plot(t, random.normal(0, 1, (300, 3)).cumsum(0))
    axes.tick_params(colors="white")
    x, y, colours = random.normal(0, 1, 600), random.normal(0, 1, 600), random.random(600)
    figure("scatter").subplots().scatter(x, y, c=colours, s=60, alpha=0.6)
    figure("scatter-dense").subplots().plot(*random.normal(0, 1, (2, 20000)), ",")
    figure("bars", (9, 4)).subplots().bar(np.arange(14), random.uniform(1, 9, 14), color=COLOURS)
    figure("bars-horizontal", dpi=80).subplots().barh(np.arange(9), random.uniform(1, 9, 9))
    figure("histogram").subplots().hist(random.normal(0, 1, 3000), bins=60)
    figure("pie").subplots().pie(random.uniform(1, 5, 6), labels=list(random.choice(WORDS, 6)), autopct="%1.0f%%")
    figure("boxes").subplots().boxplot(list(random.normal(0, 1, (8, 80))))
    chart = figure("heatmap-coarse")
    axes = chart.subplots()
    chart.colorbar(axes.imshow(random.random((12, 12)), cmap="viridis"))
    chart = figure("heatmap-smooth")
    axes = chart.subplots()
    x, y = np.meshgrid(t, t)
    chart.colorbar(axes.imshow(np.sin(x) * np.cos(y), cmap="coolwarm"))
    axes = figure("contours").subplots()
    axes.contourf(np.sin(x) * np.cos(y) + x / 9, levels=14, cmap="magma")
    surface = figure("surface").add_subplot(projection="3d")
    surface.plot_surface(x[::6, ::6], y[::6, ::6], (np.sin(x) * np.cos(y))[::6, ::6], cmap="viridis")
    grid = figure("grid-of-plots", (10, 8), 100).subplots(3, 3)
    for axes in grid.flat:
        axes.plot(t, random.normal(0, 1, 300).cumsum())
    axes = figure("filled").subplots()
    axes.stackplot(t, *np.abs(random.normal(0, 1, (5, 300)).cumsum(1)), colors=COLOURS)
    axes = figure("errors", dpi=200).subplots()
    axes.errorbar(np.arange(20), random.normal(5, 1, 20), yerr=random.uniform(0.2, 1, 20), fmt="o", capsize=4)
    axes.grid()
    figure("polar").add_subplot(projection="polar").plot(t, np.abs(np.sin(t * 3)))
    axes = figure("table", (8, 3)).subplots()
    axes.axis("off")
    axes.table(cellText=[[f"{v:.2f}" for v in row] for row in random.normal(0, 1, (10, 6))], loc="center")
    axes = figure("quiver").subplots()
    axes.quiver(np.sin(x[::15, ::15]), np.cos(y[::15, ::15]))
    for name, chart, dpi in made:
        chart.savefig(folder / f"{name}.png", dpi=dpi)


# Scans


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(name, fallback_to_default=False), size)


def page(random: Random, face: str, size: int, sides: tuple[int, int], layout: str) -> Image.Image:
    """A printed page in black on white, L: text, columns, a form with lines, a list with a drawing."""
    width, height = sides
    sheet = Image.new("L", (width, height), 255)
    draw, letters = ImageDraw.Draw(sheet), font(face, size)
    columns = 2 if layout == "columns" else 1
    margin = width // 11
    wide = (width - margin * (columns + 1)) // columns
    for column in range(columns):
        left, y = margin + column * (wide + margin), margin
        while y < height - margin:
            if layout == "form" and random.random() < 0.5:
                draw.rectangle((left, y, left + wide, y + size * 2), outline=0, width=2)
                draw.text((left + 8, y + size // 2), " ".join(random.choice(WORDS, 3)), 0, letters)
                y += size * 2
            elif layout == "drawing" and margin * 2 < y < margin * 3:
                draw.ellipse((left, y, left + wide // 2, y + wide // 2), outline=0, width=4)
                draw.line((left, y + wide // 2, left + wide, y), 0, 3)
                y += wide // 2
            elif random.random() > 0.1:
                line = ""
                while letters.getlength(line) < wide * (1 if random.random() > 0.15 else 0.5):
                    line += random.choice(WORDS) + " "
                fitting = math.floor(len(line) * min(1.0, wide / letters.getlength(line)))
                draw.text((left, y), line[:fitting], 0, letters)
            y += round(size * 1.45)
    return sheet


def scanned(
    random: Random, sheet: Image.Image, noise: float, turn: float, paper: tuple[int, ...], grain: float, shade: float
) -> Image.Image:
    """Return the page as a scanner or a phone sees it: turned, unsharp, on paper with grain and shade, with noise."""
    turned = sheet.rotate(turn, Image.Resampling.BICUBIC, fillcolor=255).filter(ImageFilter.GaussianBlur(0.7))
    ink = np.asarray(turned, np.float64)[..., None] / 255
    height, width = ink.shape[:2]
    texture = Image.fromarray(random.normal(128, 40, (height // 3 + 1, width // 3 + 1)).clip(0, 255).astype(np.uint8))
    texture = texture.resize((width, height), Image.Resampling.BICUBIC)
    fibre = (np.asarray(texture, np.float64)[..., None] - 128) / 40 * grain
    y, x = np.mgrid[0:height, 0:width]
    light = 1 - shade * (x / width * 0.6 + (y / height) ** 2 * 0.4)[..., None]
    lit = (np.array(paper) * light + fibre) * (0.12 + 0.88 * ink) + random.normal(0, noise, (height, width, 3))
    return Image.fromarray(lit.clip(0, 255).round().astype(np.uint8))


def scans(random: Random, folder: Path) -> None:
    serif, sans, mono = "Liberation Serif", "Liberation Sans", "Liberation Mono"
    faces = (serif, "DejaVu Sans", sans, "DejaVu Serif", "DejaVu Sans Mono", mono)
    layouts = ("text", "columns", "form", "drawing")
    papers = ((252, 252, 252), (244, 240, 228), (232, 232, 236), (255, 255, 255))
    for number in range(14):
        width, height = ((850, 1100), (1240, 1754), (1000, 700))[number % 3]
        size, layout = int(random.integers(width // 70, width // 32)), layouts[number % 4]
        sheet = page(random, faces[number % 6], size, (width, height), layout)
        noise, turn, grain = (float(random.uniform(*limits)) for limits in ((0.5, 5), (-3, 3), (0.5, 4)))
        shade, quality = float(random.choice([0, 0.05, 0.2])), int(random.choice([75, 85, 92]))
        picture = scanned(random, sheet, noise, turn, papers[number % 4], grain, shade)
        picture.save(stream := io.BytesIO(), "JPEG", quality=quality)
        Image.open(stream).convert("RGB").save(folder / f"scan-{number:02d}-{layout}.png")


# Drawings


def canvas(width: int, height: int, back: str = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), back)
    return picture, ImageDraw.Draw(picture)


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: str) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def drawings(random: Random, folder: Path) -> None:
    letters = functools.partial(font, "DejaVu Sans")

    def save(name: str, picture: Image.Image, by: int = 2) -> None:
        """Drawn larger and averaged, so that edges are smooth as a browser draws them."""
        picture.reduce(by).save(folder / f"{name}.png")

    def save_array(name: str, values: NDArray[Any]) -> None:
        save(name, Image.fromarray(values.astype(np.uint8)).convert("RGB"), 1)

    def colour(*choices: str) -> str:
        return str(random.choice(choices or COLOURS))

    for number, back in enumerate(("#ffffff", "#0b132b")):
        logo, draw = canvas(1600, 800, back)
        disc(draw, 400, 400, 260, COLOURS[number])
        disc(draw, 480, 360, 170, back)
        draw.text((720, 280), random.choice(WORDS).upper(), COLOURS[number + 2], letters(200))
        save(f"logo-{number}", logo)
    for number, sky in enumerate(("#87ceeb", "#fcd5ce", "#1d3557", "#caffbf")):
        cartoon, draw = canvas(2000, 1500, sky)
        disc(draw, 1600, 300, 160, "#ffd166")
        for _ in range(6):
            x, y = random.uniform(0, 2000), random.uniform(800, 1300)
            draw.polygon([(x - 400, 1500), (x, y - 500), (x + 400, 1500)], colour(), "black", 8)
        for _ in range(12):
            disc(draw, random.uniform(0, 2000), random.uniform(0, 900), random.uniform(20, 120), colour())
        draw.rectangle((700, 900, 1100, 1400), "#e63946", "black", 10)
        draw.polygon([(650, 900), (900, 650), (1150, 900)], "#6d597a", "black", 10)
        save(f"cartoon-{number}", cartoon)
    for number in range(3):
        icon, draw = canvas(1024, 1024)
        draw.rounded_rectangle((80, 80, 944, 944), 200, fill=COLOURS[number + 3])
        draw.regular_polygon((512, 512, 300), 3 + number, fill="white", rotation=10 * number)
        save(f"icon-{number}", icon)
    rows, columns = np.mgrid[0:700, 0:1000] / 1000
    save_array("gradient-linear", (np.stack([columns, rows, 1 - columns], -1) * 255).round())
    radial = np.hypot(columns - 0.5, rows - 0.35)
    save_array("gradient-radial", np.stack([1 - radial, radial, radial * 0 + 0.6], -1).clip(0, 1) * 255)
    save_array("flag", (np.floor(columns * 12) % 2)[..., None] * np.array([200, 40, 90]) + np.array([30, 60, 90]))
    tree, draw = canvas(2000, 1400)
    boxes = [(random.uniform(50, 1500), 80 + 210 * (i // 2)) for i in range(12)]
    for a, b in zip(boxes, boxes[2:], strict=False):
        draw.line((a[0] + 180, a[1] + 60, b[0] + 180, b[1] + 60), "black", 5)
    for left, top in boxes:
        draw.rectangle((left, top, left + 360, top + 120), "#e0ecff", "black", 4)
        draw.text((left + 30, top + 30), random.choice(WORDS), "black", letters(48))
    save("diagram", tree)
    comic, draw = canvas(1800, 1800, "#fffdf5")
    for top, left in itertools.product((60, 920), repeat=2):
        draw.rectangle((left, top, left + 820, top + 820), colour("#fff", "#ffe8a3", "#cfe8ff"), "black", 9)
        disc(draw, left + 300, top + 520, 150, "#f2c9a1")
        disc(draw, left + 250, top + 490, 18, "black")
        disc(draw, left + 350, top + 490, 18, "black")
        draw.arc((left + 220, top + 500, left + 380, top + 620), 20, 160, "black", 9)
        draw.ellipse((left + 330, top + 60, left + 790, top + 330), "white", "black", 7)
        draw.text((left + 400, top + 150), " ".join(random.choice(WORDS, 2)), "black", letters(50))
    save("comic", comic)
    save_array("qr-code", np.kron(random.integers(0, 2, (33, 33)), np.ones((18, 18))) * 255)
    strokes, draw = canvas(2000, 1400)
    for _ in range(40):
        points = np.cumsum(random.normal(0, 45, (30, 2)), 0) + random.uniform(200, 1200, 2)
        ink = colour("#222", "#444", "#a4133c")
        draw.line([tuple(point) for point in points], ink, int(random.integers(3, 9)), "curve")
    save("sketch", strokes)
    glow, draw = canvas(1200, 800, "#101020")
    for _ in range(25):
        disc(draw, random.uniform(0, 1200), random.uniform(0, 800), random.uniform(30, 160), colour())
    save("blurred-blobs", glow.filter(ImageFilter.GaussianBlur(40)), 1)


def make(folder: Path, seed: int = 0) -> None:
    """Write all graphics below `folder`."""
    for number, (kind, draw) in enumerate(zip(KINDS, (screenshots, plots, scans, drawings), strict=True)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        draw(np.random.default_rng([seed, number]), folder / kind)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.seed)
