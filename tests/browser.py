"A headless Chromium for the tests that look at pages; where there is none they are skipped, and say so."
import shutil

import pytest

# The first has no window at all, and takes an eighth less of the processor.
NAMES = "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NONE = "there is no Chromium here, so no page is looked at in a browser"


class NoBrowser:
    "Skips whatever test asks it for a window."

    def new_context(self, **_):
        pytest.skip(NONE)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        yield NoBrowser()
        return
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
