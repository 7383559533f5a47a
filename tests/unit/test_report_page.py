"""The report as a page: whole, self-contained, and nothing in it can run."""

import re
from html.parser import HTMLParser

import cli_world as world

from volferry.model import State
from volferry.report import page, story

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.links += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report(**changes: object) -> story.Report:
    whole = story.tell(world.transfer(State.DONE), world.events(), world.RECEIPTS, world.PASSES)
    return whole.model_copy(update=changes)


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = page.render(report())
    checker = checked(html)
    assert checker.links == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & checker.tags
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_the_page_has_what_the_text_has() -> None:
    words = "".join(checked(page.render(report())).text)
    for part in ("3.8 s", "12.0 GiB", world.SOURCE, world.TARGET, "Nothing.", "cutover", "allowed"):
        assert part in words
    assert f"{world.SERVER}/{world.TARGET}" in words


def test_the_page_has_rows_for_each_volume() -> None:
    transfer = world.transfer(State.DONE, plan=world.plan_of_two())
    whole = story.tell(transfer, world.events(), world.receipts_of_two(), world.PASSES)
    words = "".join(checked(page.render(whole)).text)
    assert "sourcevol, log in testsrv" in words
    assert "cbs-standard to cbs-premium, cbs-premium, tr-" in words
    for part in (world.SOURCE, world.TARGET, world.LOG, world.LOG_TARGET, "on /srv/log"):
        assert part in words


def test_names_cannot_become_markup() -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    odd = report(
        server_name=evil,
        moves=(story.Move(source=story.VolumeEnd(id=evil, name=evil, type=evil)),),
        left=(evil,),
        remaining=(evil,),
        notes=(evil,),
        error={"what": evil, "data": evil, "hint": evil},
        fstab_changes=(evil,),
        method=evil,
    )
    checker = checked(page.render(odd))
    assert checker.links == [] and "script" not in checker.tags and "img" not in checker.tags
    assert evil in "".join(checker.text)


def test_parts_of_a_downtime_are_drawn_to_scale() -> None:
    html = page.render(report())
    grow = [float(value) for value in re.findall(r"flex-grow:([\d.]+)", html)]
    assert grow[:6] == [1.1, 0.08, 0.9, 0.3, 0.26, 1.2]


def test_a_page_without_a_cutover_says_not_measured() -> None:
    early = story.tell(
        world.transfer(State.STOPPED, "attach", error={"what": "no disk", "data": "", "hint": ""}),
        world.events("attach"),
        {step: world.RECEIPTS[step] for step in ("install", "snapshot", "target")},
        (),
    )
    words = "".join(checked(page.render(early)).text)
    assert "not measured" in words and "no disk" in words and "Nothing was compared." in words


def test_the_page_is_for_light_dark_and_paper() -> None:
    html = page.render(report())
    assert "prefers-color-scheme: dark" in html and "@media print" in html
