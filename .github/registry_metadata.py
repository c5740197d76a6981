"""Writes into pyproject.toml what ComfyUI's registry asks for and only the hosting site knows: where the repository is.

Role: the step of publish.yml before ``comfy node publish``, which sends what pyproject.toml says, and the archive.
The file in git names no address, so a fork publishes its own. Standard library only; the result is never committed.
"""

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMFY_TABLE = "[tool.comfy]\n"
URLS_TABLE = "[project.urls]\n"


def complete(pyproject: str, repository_url: str, raw_url: str) -> str:
    """Return the text of pyproject.toml with addresses, icon and banner.

    Args:
        pyproject: its text in git.
        repository_url: the page of the repository.
        raw_url: where the files of the published commit are served.

    Raises:
        ValueError: ``[tool.comfy]`` is not there exactly once, or ``[project.urls]`` is there already.
    """
    if f"\n{URLS_TABLE}" in pyproject:
        raise ValueError("expected a pyproject.toml without [project.urls], got one that was completed before")
    if pyproject.count(COMFY_TABLE) != 1:
        raise ValueError(f"expected [tool.comfy] once in pyproject.toml, got it {pyproject.count(COMFY_TABLE)} times")
    pictures = f'Icon = "{raw_url}/assets/icon.png"\nBanner = "{raw_url}/assets/banner.png"'
    text = pyproject.replace(COMFY_TABLE, f"{COMFY_TABLE}{pictures}\n")
    addresses = {"Repository": "", "Issues": "/issues", "Documentation": "#readme"}
    urls = "".join(f'{name} = "{repository_url}{path}"\n' for name, path in addresses.items())
    return f"{text}\n{URLS_TABLE}{urls}"


def released(pyproject: str, changelog: str) -> str:
    """Return what the changelog says of the version in pyproject.toml.

    Raises:
        ValueError: no version, or no section of that version or nothing in it.
    """
    version = re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)
    if version is None:
        raise ValueError('expected a line like version = "1.2.3" in pyproject.toml, got none')
    for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        if heading.split()[:1] == [version[1]] and text.strip():
            return text.strip() + "\n"
    raise ValueError(f"expected a section '## {version[1]}' in CHANGELOG.md with what is new, got none or an empty one")


def main() -> None:
    """Rewrite pyproject.toml in place and write the changelog of its version to a file."""
    parser = argparse.ArgumentParser(description="Complete pyproject.toml for ComfyUI's registry.")
    parser.add_argument("repository", help="OWNER/NAME on GitHub")
    parser.add_argument("commit", help="the commit that is published")
    parser.add_argument("changelog", type=Path, help="file to write what is new to")
    options = parser.parse_args()
    file = ROOT / "pyproject.toml"
    pyproject = file.read_text(encoding="utf-8")
    news = released(pyproject, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    text = complete(
        pyproject,
        f"https://github.com/{options.repository}",
        f"https://raw.githubusercontent.com/{options.repository}/{options.commit}",
    )
    options.changelog.write_text(news, encoding="utf-8")
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
