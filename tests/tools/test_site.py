"""The site of `make docs` is whole where it is opened from a file, on screens of any width."""

import re
import subprocess
import sys

import pytest

from tests.test_docs import ROOT
from tools import site

pytest.importorskip("zensical", reason="Zensical is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, built as `make docs` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    sources = (ROOT / "src").as_posix()
    (folder / "zensical.toml").write_text(settings.replace('["src"]', f'["{sources}"]'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "PAGES", folder / "build" / "pages")
        site.gather()
    run = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run(run, cwd=folder, check=True, capture_output=True)
    return folder / "build" / "site"


@pytest.fixture
def phone(browser):
    """A page of a phone's width; it had no error, and asked nobody for anything."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_default_timeout(30_000)  # ms: machines may be busy
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert [url for url in asked if not url.startswith("file:")] == []
    assert errors == []


def test_a_word_is_found_where_pages_are_opened_from_files(built, phone):
    phone.goto((built / "index.html").as_uri())
    phone.keyboard.press("/")
    phone.get_by_placeholder("Search").fill("synonyms")
    phone.locator("mark").first.wait_for()
    assert any("synonym" in found.lower() for found in phone.locator("mark").all_inner_texts())


def test_the_page_of_commands_tells_each_whole_and_leads_to_it(built):
    page = site.commands()
    assert "..." not in "".join(
        re.findall(r"^\* .*$", page.partition("**Commands**")[2], re.M)[:18]
    )
    listed = re.findall(r"^\* \[`[\w-]+`\]\(#(.+)\): .+\.$", page, re.MULTILINE)
    sections = set(re.findall(r'id="(maskclip-[\w-]+)"', (built / "commands.html").read_text()))
    assert set(listed) == sections
