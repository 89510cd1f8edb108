"""Pages opened in headless Chromium."""

import html
import json
import re
import shutil
import subprocess

import pytest

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=4000 --dump-dom"

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")


def printed_pages(page, folder):
    """How many sheets the HTML text `page` is printed on."""
    path, pdf = folder / "printed.html", folder / "printed.pdf"
    path.write_text(page, "utf-8")
    flags = [flag for flag in FLAGS.split() if flag != "--dump-dom"]
    command = ["chromium", *flags, f"--user-data-dir={folder / 'browser'}", "--no-pdf-header-footer"]
    subprocess.run([*command, f"--print-to-pdf={pdf}", path.as_uri()], capture_output=True, timeout=120, check=True)
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf.read_bytes()))


def open_page(page, width, folder, script="() => null"):
    """Open the HTML text `page` at `width` pixels; returns (what `script` returns, complaints).

    `script` is the text of a JavaScript function of the page's window, run when it has loaded, that may be async.
    Complaints are the console's lines, and "overflow" if the page scrolls sideways. Advice about reading pixels is left
    out, because only tests read pixels.
    """
    wrapper = folder / f"wrapper{width}.html"
    wrapper.write_text(
        f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px; height:900px; border:0"></iframe>'
        "<script>document.querySelector('iframe').onload = async event => {"
        "const frame = event.target, inner = frame.contentWindow, root = inner.document.documentElement;"
        f"const returned = await ({script})(inner);"
        "const result = document.createElement('output');"
        "result.textContent = JSON.stringify([returned, root.scrollWidth > root.clientWidth]);"
        "frame.remove(); document.body.append(result);}</script>",
        "utf-8",
    )
    command = ["chromium", *FLAGS.split(), f"--user-data-dir={folder / 'browser'}", "--window-size=1400,1000"]
    result = subprocess.run([*command, wrapper.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in result.stderr.splitlines() if "CONSOLE" in line and "readback" not in line]
    found = re.search("<output>(.*)</output>", result.stdout, re.DOTALL)
    if found is None:
        return None, [*complaints, "not loaded"]
    returned, overflows = json.loads(html.unescape(found[1]))
    return returned, [*complaints, *(["overflow"] if overflows else [])]
