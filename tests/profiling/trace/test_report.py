"""The report: what it carries, that nothing in it can be run but its own script, and that a browser shows it."""

import base64
import hashlib
import html
import itertools
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from browser import Page, find_browser, open_browser
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.profiling.trace import report
from stepladder.profiling.trace.kinds import Kind
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.report import Content, timeline_of, write_report
from stepladder.profiling.trace.report.content import PARTS
from stepladder.profiling.trace.report.payload import json_text, packed
from stepladder.profiling.trace.report.write import SCRIPTS, page_of

DATA = Path(__file__).parent / "data"
FOLDER = Path(report.__file__).parent
MS = 1_000_000
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "--><!--<script>",
    "{{data}}{{script}}{{policy}}",
    '"><svg onload=window.hacked=3>',
    "line\u2028separator\u0000and\u202ereversed",
    "javascript:window.hacked=4",
]


def steps(num_ranks: int = 3, num_steps: int = 5) -> pl.DataFrame:
    """Rank r, step s: 10 + r ms of compute, 1 over communication, 2 exposed, 3 of copies, s idle."""
    rows = [(r, s, 0, (10 + r) * MS, MS, 2 * MS, 3 * MS, s * MS) for r in range(num_ranks) for s in range(num_steps)]
    frame = pl.DataFrame(rows, schema=["rank", "step", "device", *PARTS], orient="row")
    return frame.with_columns(window_ns=pl.sum_horizontal(*PARTS))


def phases() -> pl.DataFrame:
    whole = steps().drop("window_ns")
    half = [(pl.col(part) // 2).alias(part) for part in PARTS]
    return pl.concat(
        [whole.with_columns(*half, phase=pl.lit(name), within=pl.lit("")) for name in ("stepladder_a", "b")]
    )


def events(num_events: int, *, num_tracks: int = 4, rank: int = 0) -> pl.DataFrame:
    """Kernels end to end on streams, and on the host a range over every ten of them."""
    each = num_events // num_tracks
    parts = []
    for track in range(num_tracks):
        on_device = track % 2 == 0
        start = np.arange(each) * 1000 + track
        dur = np.full(each, 900)
        if not on_device:
            dur[::10] = 9990
        parts.append(
            pl.DataFrame(
                {
                    "rank": np.full(each, rank),
                    "place": ["device" if on_device else "host"] * each,
                    "track": [f"{'GPU 0 · stream' if on_device else 'thread'} {track}"] * each,
                    "start_ns": start + (1 << 60),
                    "dur_ns": dur,
                    "name": [f"kernel_{i % 97}" for i in range(each)],
                    "kind": ["compute" if on_device else "operator"] * each,
                }
            )
        )
    return pl.concat(parts).sort("place", "track", "start_ns", "dur_ns", descending=[False, False, False, True])


def kernels(names: list[str]) -> pl.DataFrame:
    total = [(i + 1) * MS for i in range(len(names))]
    return pl.DataFrame(
        {"name": names, "kind": ["compute"] * len(names), "count": range(1, len(names) + 1), "total_ns": total}
    ).with_columns(share=pl.col("total_ns") / sum(total))


def finding(**more: Any) -> dict[str, Any]:
    return {
        "title": "The device waits for the loader",
        "evidence": ["data_wait is 14 ms", "on every rank"],
        "cause": "The loader is slow.",
        "remedy": "data.workers = 8",
        "measure_next": "data_wait",
        "wins_at_most_ns": 14 * MS,
        "assumptions": ["it keeps up"],
    } | more


def path() -> pl.DataFrame:
    """3 ms of a gemm on rank 1, then 1 ms of an exchange on rank 0."""
    columns = {"rank": [1, 0], "step": [2, 2], "category": ["compute", "communication"], "name": ["gemm", "nccl"]}
    return pl.DataFrame(columns | {"count": [1, 1], "time_ns": [3 * MS, MS], "share": [0.75, 0.25]})


def across() -> pl.DataFrame:
    start = (1 << 60) + np.array([0, 6000])
    return pl.DataFrame({"start_ns": start, "dur_ns": [6000, 2000], "name": ["gemm", "nccl"], "rank": [1, 0]})


def memory() -> pl.DataFrame:
    """Of two devices 1, 3 and 2 GiB, and twice that."""
    rows = [
        (0, 1, device, i * MS, (device + 1) * gib << 30, 8 << 30)
        for device in (0, 1)
        for i, gib in enumerate((1, 3, 2))
    ]
    schema = ["rank", "device_type", "device", "at_ns", "allocated_bytes", "reserved_bytes"]
    return pl.DataFrame(rows, schema=schema, orient="row")


def full(**more: Any) -> Content:
    roofline = kernels(["gemm", "add", "unknown"]).with_columns(
        flops=pl.Series([4e12, 1e8, None]),
        bytes=pl.Series([1e9, 1e8, None]),
        bound=pl.Series(["compute", "memory", None]),
    )
    collective = {"group": ["0"], "type": ["all_reduce"], "count": [3], "message_bytes": [1 << 20], "bus_gb_s": [88.5]}
    made: dict[str, Any] = {
        "title": "A run",
        "subtitle": "three ranks",
        "notes": ["the file ends in the middle of an event"],
        "steps": steps(),
        "phases": phases(),
        "timeline": events(2000),
        "across": across(),
        "path": path(),
        "gains": pl.DataFrame({"change": ["launches free"], "name": [None], "gain_ns": [MS], "gain_share": [0.25]}),
        "stragglers": pl.DataFrame({"rank": [1, 0], "num_late": [4, 1], "num_steps": [5, 5], "mean_late_ns": [MS, 0]}),
        "memory": memory(),
        "memory_steps": pl.DataFrame({"rank": [0, 0], "step": [7, 8], "at_ns": [0, 1_500_000]}),
        "held": pl.DataFrame(
            {"rank": [0], "where": ["device 0"], "phase": ["b"], "operator": ["aten::mm"], "bytes": [3 << 30]}
        ),
        "sequences": pl.DataFrame(
            {"operator": ["aten::linear"], "kernels": ["a::b<1> → c"], "num_kernels": [2], "count": [9]}
        ),
        "operators": pl.DataFrame({"name": ["aten::mm", "aten::add"], "count": [3, 9], "own_ns": [2 * MS, MS]}),
        "counters": pl.DataFrame({"name": ["range"], "operator": ["aten::mm"], "sm__cycles": [17.5]}),
        "kernels": kernels([f"kernel {i}" for i in range(40)]),
        "collectives": pl.DataFrame(collective).with_columns(exposed_ns=pl.lit(5 * MS)),
        "roofline": roofline,
        "peak_tflops": {"BF16": 312.0},
        "peak_gb_per_s": {"HBM": 2039.0},
        "advice": [finding()],
    }
    return Content(**(made | more))


def unpacked(column: dict[str, Any]) -> list[Any]:
    values = np.frombuffer(base64.b64decode(column["d"]), dtype=f"<{column['t']}").tolist()
    if "w" in column:
        return [column["w"][value - 1] if value else None for value in values]
    return [None if value != value else value for value in values]


# ---- what is written


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.one_of(st.none(), st.integers(-(2**53), 2**53)), max_size=30))
def test_whole_numbers_come_back_whatever_their_size(values: list[int | None]) -> None:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Int64})
    assert unpacked(packed(frame)["c"]["x"]) == values


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.one_of(st.none(), st.text(max_size=8)), max_size=30))
def test_texts_come_back_and_none_is_not_an_empty_one(values: list[str | None]) -> None:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.String})
    assert unpacked(packed(frame)["c"]["x"]) == values


@settings(deadline=None)  # a busy machine is no fault
@given(st.text())
def test_the_payload_holds_no_character_of_html(text: str) -> None:
    made = json_text({"x": [text, *HOSTILE]})
    assert not set(made) & set("<>&")
    assert made.isascii()
    assert json.loads(made) == {"x": [text, *HOSTILE]}


def test_small_numbers_take_one_byte_each() -> None:
    assert packed(pl.DataFrame({"x": [0, 255]}))["c"]["x"] == {"t": "u1", "d": base64.b64encode(b"\x00\xff").decode()}


def test_the_policy_names_exactly_the_script_and_the_style_that_the_page_carries() -> None:
    page = page_of(full())
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy


def test_hostile_names_do_not_change_the_structure_of_the_page() -> None:
    calm, bad = page_of(full()), page_of(full(title=HOSTILE[0], kernels=kernels(HOSTILE), notes=HOSTILE))
    tags = re.compile(r"<[a-zA-Z/!][^>]*>")
    data = re.compile(r'(<script type="application/json" id="data">).*?(</script>)', re.DOTALL)
    assert tags.findall(data.sub(r"\1\2", bad)) == tags.findall(data.sub(r"\1\2", calm))
    assert bad.count("</script>") == 2


def test_the_page_names_no_address() -> None:
    shipped = "".join((FOLDER / name).read_text() for name in (*SCRIPTS, "page.html", "page.css"))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bfetch\(|XMLHttpRequest|innerHTML|\bsrc=", shipped)


def test_a_table_without_its_columns_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Content\.steps lacks idle_ns"):
        Content(title="x", steps=steps().drop("idle_ns"))


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, Content(title="before"))
    before = path.read_text()
    with pytest.raises(pl.exceptions.PolarsError):
        write_report(path, Content(title="x", timeline=events(8).with_columns(start_ns=pl.lit("late"))))
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_times_beyond_a_double_are_counted_from_the_first_event() -> None:
    late = events(8).with_columns(pl.col("start_ns") + 1)
    critical = pl.DataFrame({"start_ns": [(1 << 60) + 5], "dur_ns": [3], "name": ["x"]})
    data = report.write.data_of(Content(title="x", timeline=late, critical=critical))
    assert unpacked(data["frames"]["timeline"]["c"]["start_ns"])[0] == 0
    assert unpacked(data["frames"]["critical"]["c"]["start_ns"]) == [4]


def test_rows_beyond_the_limit_are_the_shortest_and_a_note_says_so() -> None:
    data = report.write.data_of(Content(title="x", kernels=kernels([f"k{i}" for i in range(2500)])))
    kept = unpacked(data["frames"]["kernels"]["c"]["total_ns"])
    assert min(kept) == 501 * MS
    assert "2,500" in data["notes"][0]


# ---- the timeline of a trace


def test_a_timeline_holds_what_overlaps_the_step_and_the_work_that_it_launched() -> None:
    trace = read_trace(DATA / "h100_qwen_18k" / "rank-0.json.gz")
    made, notes = timeline_of(trace, rank=3)
    begin, length = trace.steps.select("ts", "dur").row(0)
    end = begin + length
    launched = {row["correlation"] for row in trace.of(Kind.LAUNCH).iter_rows(named=True) if begin <= row["ts"] < end}
    ends = [row["ts"] + row["dur"] for row in trace.device.iter_rows(named=True) if row["correlation"] in launched]
    end = max([end, *ends])
    wanted = sorted(
        (row["ts"], row["dur"], row["name"])
        for row in trace.events.iter_rows(named=True)
        if row["ts"] < end and row["ts"] + row["dur"] > begin and row["kind"] not in ("other", "counters")
    )
    assert sorted(made.select("start_ns", "dur_ns", "name").rows()) == wanted
    assert set(made["rank"]) == {3}
    assert notes == []


def test_of_too_many_events_the_shortest_python_calls_go_first() -> None:
    trace = read_trace(DATA / "h100_qwen_18k" / "rank-0.json.gz")
    whole, _ = timeline_of(trace)
    num_python = whole.filter(pl.col("kind") == "python").height
    made, notes = timeline_of(trace, max_events=len(whole) - num_python // 2)
    assert len(made) <= len(whole) - num_python // 2
    assert made.filter(pl.col("kind") != "python").equals(whole.filter(pl.col("kind") != "python"))
    gone = whole.filter(pl.col("kind") == "python").join(made, on=whole.columns, how="anti")
    assert gone["dur_ns"].max() < made.filter(pl.col("kind") == "python")["dur_ns"].min()
    assert "Python calls" in notes[0]


@pytest.mark.parametrize("name", ["cpu_only", "amd_mi250_minitoy", "vllm_decode_graph", "sampled_2rank"])
def test_every_dialect_has_a_timeline(name: str) -> None:
    made, _ = timeline_of(read_trace(DATA / name / "rank-0.json.gz"))
    assert len(made) > 0
    assert made["track"].null_count() == 0
    assert made.schema == report.timeline.SCHEMA


def test_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="step = 99999: not in the trace"):
        timeline_of(read_trace(DATA / "h100_qwen_18k" / "rank-0.json.gz"), step=99999)


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Generator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with open_browser(program) as page:
        yield page


@pytest.fixture
def show(browser: Page, tmp_path: Path) -> Any:
    def call(content: Content, **more: Any) -> Page:
        write_report(tmp_path / "report.html", content)
        browser.requests.clear()
        browser.complaints.clear()
        browser.open(tmp_path / "report.html", **more)
        browser.until("document.documentElement.dataset.ready === 'yes'")
        browser.frame()
        return browser

    return call


def text_of(page: Page, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).innerText")


def enter(page: Page, selector: str, text: str) -> None:
    """Write into a box of the page."""
    box = f"document.querySelector({json.dumps(selector)})"
    page.run(f"{box}.value = {json.dumps(text)}; {box}.dispatchEvent(new Event('input'))")


LANES = ".lanes canvas"


def shown(page: Page) -> tuple[int, int]:
    page.frame()
    made = page.run(f"(d => [d.from, d.to])(document.querySelector('{LANES}').dataset)")
    return int(made[0]), int(made[1])


def test_no_part_of_the_page_is_wider_than_a_narrow_window(show: Any) -> None:
    page = show(full(), width=380)
    assert page.run("document.documentElement.scrollWidth") == 380


def test_every_section_stands_on_the_page_with_its_numbers(show: Any, tmp_path: Path) -> None:
    page = show(full())
    assert page.run("[...document.querySelectorAll('section')].map(each => each.id)") == [
        "time", "advice", "steps", "timeline", "path", "ranks", "memory", "kernels", "sequences", "operators",
        "collectives", "roofline", "counters", "notes",
    ]  # fmt: skip
    windows = sorted(steps()["window_ns"].to_list())
    assert f"{windows[len(windows) // 2] / MS:.2f} ms" in text_of(page, "#time")
    assert f"{100 * steps()['idle_ns'].sum() / sum(windows):.1f} %" in text_of(page, "#time")
    assert "14.00 ms" in text_of(page, "#advice .win")
    assert "data.workers = 8" in text_of(page, "#advice pre")
    assert "88.5" in text_of(page, "#collectives")
    assert "1 kernels of unknown work" in text_of(page, "#roofline .lead")
    assert "the middle of an event" in text_of(page, "#notes")
    assert text_of(page, "#path .readout") == "4.000 ms: rank 1 75.0 %, rank 0 25.0 %"
    assert "launches free" in text_of(page, "#path table:last-of-type, #path")
    assert "a::b<1> → c" in text_of(page, "#sequences")
    assert "aten::mm" in text_of(page, "#operators")
    assert "17.5" in text_of(page, "#counters")
    assert "0\t1\t5" in text_of(page, "#ranks table")
    assert page.requests == [(tmp_path / "report.html").as_uri()]
    assert page.complaints == []


def test_names_that_are_markup_are_shown_as_text_and_run_nothing(show: Any) -> None:
    bad = full(
        title=HOSTILE[0],
        subtitle=HOSTILE[1],
        notes=HOSTILE,
        steps=steps(),
        phases=phases().with_columns(phase=pl.lit(HOSTILE[1])),
        timeline=events(200).with_columns(name=pl.lit(HOSTILE[0]), track=pl.lit(HOSTILE[1])),
        kernels=kernels(HOSTILE),
        across=across().with_columns(name=pl.lit(HOSTILE[0])),
        path=path().with_columns(name=pl.lit(HOSTILE[1]), category=pl.lit(HOSTILE[0])),
        sequences=pl.DataFrame({"operator": HOSTILE, "kernels": HOSTILE, "count": range(len(HOSTILE))}),
        operators=pl.DataFrame({"name": HOSTILE, "own_ns": range(len(HOSTILE))}),
        counters=pl.DataFrame({"name": HOSTILE, HOSTILE[0]: range(len(HOSTILE))}),
        collectives=pl.DataFrame({"type": HOSTILE, "group": HOSTILE}),
        advice=[finding(title=HOSTILE[1], cause=HOSTILE[0], remedy=HOSTILE[4], evidence=HOSTILE)],
        missing={"critical": HOSTILE[0]},
    )
    page = show(bad)
    assert page.run("document.querySelector('h1').textContent") == HOSTILE[0]
    assert page.run("document.title").strip() == HOSTILE[0]
    names = page.run("[...document.querySelectorAll('#kernels td.name button')].map(each => each.title)")
    assert sorted(names) == sorted(HOSTILE)
    page.run("[...document.querySelectorAll('#kernels td.name button')].forEach(each => each.click())")
    assert HOSTILE[0] in page.run("document.querySelector('#kernels').textContent")
    box = page.box(LANES)
    for x, y in ((260, 12), (500, 37)):  # the path of all ranks, and what a device ran
        page.mouse("mouseMoved", box["x"] + x, box["y"] + y)
        page.frame()
        assert HOSTILE[0] in page.run("document.querySelector('#tip').textContent")
    assert page.run("document.querySelectorAll('img, svg, iframe, object').length") == 0
    assert page.run("document.querySelectorAll('script').length") == 2
    assert page.run("typeof window.hacked") == "undefined"
    assert page.complaints == []


def test_the_policy_stops_what_would_get_past_the_escaping(show: Any) -> None:
    """Control: the same attacks, made from within the page."""
    page = show(Content(title="x"))
    page.run("document.body.append(Object.assign(document.createElement('p'), {id: 'there'}))")
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        page.run("document.getElementById('there').innerHTML = '<b>x</b>'")
    page.run("document.getElementById('there').setAttribute('style', 'color: red')")
    assert page.run("getComputedStyle(document.getElementById('there')).color") != "rgb(255, 0, 0)"
    assert page.run("fetch('https://example.invalid/x').then(() => 'sent', () => 'refused')") == "refused"
    page.run("document.body.append(Object.assign(document.createElement('img'), {src: 'https://example.invalid/i'}))")
    page.frame()
    assert any("Content Security Policy" in each or "ContentSecurityPolicy" in each for each in page.complaints)


def test_without_anything_each_section_says_in_a_sentence_why_it_is_empty(show: Any) -> None:
    page = show(Content(title="empty", missing={"roofline": "This device is not in the table of peaks."}))
    assert page.run("document.querySelectorAll('section canvas').length") == 0
    for name in ("steps", "timeline", "path", "memory", "kernels", "sequences", "operators", "collectives", "advice"):
        assert len(text_of(page, f"#{name} .missing")) > 20
    assert text_of(page, "#roofline .missing") == "This device is not in the table of peaks."
    assert page.complaints == []


def test_good_traces_get_no_advice_and_are_told_so(show: Any) -> None:
    assert "no finding has evidence" in text_of(show(full(advice=[])), "#advice")


def test_pointing_at_a_step_shows_its_phases_and_a_click_keeps_it(show: Any) -> None:
    page = show(full())
    assert "Mean of 5 steps · rank 0 · 18.00 ms" in text_of(page, "#steps .panel")
    box = page.box("#steps canvas")
    pitch = min(64, (box["width"] - 64) / 5)
    at = (box["x"] + 56 + 3.5 * pitch, box["y"] + 150)
    page.mouse("mouseMoved", *at)
    assert "Step 3 · rank 0 · 19.00 ms" in text_of(page, "#steps .panel")
    assert "9.500 ms" in text_of(page, "#steps .phases")
    page.click(*at)
    page.mouse("mouseMoved", 5, 5)
    assert "Step 3" in text_of(page, "#steps .panel")
    page.run("document.querySelector('#steps canvas').focus()")
    page.press("ArrowRight")
    assert "Step 4" in text_of(page, "#steps .panel")
    page.press("Escape")
    assert "Mean of 5 steps" in text_of(page, "#steps .panel")


def test_a_cell_of_the_heat_map_says_its_number_and_a_click_shows_that_step(show: Any) -> None:
    page = show(full())
    page.run("document.querySelector('#ranks canvas').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.press(key)
    assert text_of(page, "#ranks .readout") == "rank 2, step 1: step time 19.00 ms"
    page.press("Enter")
    assert "Step 1 · rank 2 · 19.00 ms" in text_of(page, "#steps .panel")
    page.run("(s => { s.value = '5'; s.dispatchEvent(new Event('change')); })(document.querySelector('#ranks select'))")
    assert text_of(page, "#ranks .readout") == "rank 2, step 1: idle 1.000 ms"


def test_the_path_of_the_job_lies_above_the_ranks_and_says_on_which_each_part_is(show: Any) -> None:
    page = show(full(timeline=pl.concat([events(40, rank=0), events(40, rank=1)]).with_columns(dur_ns=100)))
    box = page.box(LANES)
    page.click(box["x"] + 300, box["y"] + 12)
    assert "gemm · 6.000 µs · at 0 · rank 1 · critical path of all ranks" in text_of(page, "#event")
    page.click(box["x"] + 204 + 0.75 * (box["width"] - 204), box["y"] + 12)
    assert "nccl · 2.000 µs" in text_of(page, "#event")
    assert "rank 0 · critical path of all ranks" in text_of(page, "#event")


def test_memory_shows_the_peak_then_the_point_that_is_looked_at_then_another_device(show: Any) -> None:
    page = show(full())
    assert "peak 3.000 GiB allocated, 8.000 GiB reserved, 1.000 ms after the first, step 7" in text_of(
        page, "#memory .readout"
    )
    page.run("document.querySelector('#memory canvas').focus()")
    page.press("End")
    assert text_of(page, "#memory .readout").startswith("2.000 GiB allocated")
    assert "step 8" in text_of(page, "#memory .readout")
    page.run("document.documentElement.style.scrollBehavior = 'auto'")  # the focus scrolls, smoothly
    box = page.box("#memory canvas")
    page.mouse("mouseMoved", box["x"] + 90, box["y"] + 100)
    assert text_of(page, "#memory .readout").startswith("3.000 GiB")
    page.run(
        "(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })(document.querySelector('#memory select'))"
    )
    assert "peak 6.000 GiB" in text_of(page, "#memory .readout")
    assert "device 1" in text_of(page, "#memory .readout")
    assert "aten::mm" in text_of(page, "#memory table")
    assert page.complaints == []


def test_tables_sort_both_ways_and_filter(show: Any) -> None:
    page = show(full())
    first = "document.querySelector('#kernels tbody tr').innerText.split('\\t')[0].trim()"
    assert page.run(first) == "kernel 39"
    press = "[...document.querySelectorAll('#kernels th button')].find(b => b.innerText.includes('{}')).click()"
    page.run(press.format("calls"))
    page.run(press.format("calls"))
    assert page.run(first) == "kernel 0"
    assert page.run("document.querySelectorAll('#kernels [aria-sort]').length") == 1
    enter(page, "#kernels input", "kernel 17")
    assert page.run("document.querySelectorAll('#kernels tbody tr').length") == 1


def test_the_wheel_zooms_at_the_pointer_drags_pan_and_keys_do_both(show: Any) -> None:
    page = show(full())
    whole = shown(page)
    box = page.box(LANES)
    at = box["x"] + 204 + (box["width"] - 204) / 4
    page.mouse("mouseWheel", at, box["y"] + 30, deltaX=0, deltaY=-240, modifiers=2)
    near = shown(page)
    assert near[1] - near[0] < 0.6 * (whole[1] - whole[0])
    under = [begin + (end - begin) / 4 for begin, end in (whole, near)]
    assert abs(under[0] - under[1]) < 0.01 * (whole[1] - whole[0])
    page.mouse("mousePressed", at, box["y"] + 30, button="left", clickCount=1)
    page.mouse("mouseMoved", at - 120, box["y"] + 30, button="left", buttons=1)
    page.mouse("mouseReleased", at - 120, box["y"] + 30, button="left", clickCount=1)
    moved = shown(page)
    assert moved[0] > near[0]
    assert abs((moved[1] - moved[0]) - (near[1] - near[0])) <= 1
    page.run(f"document.querySelector('{LANES}').focus()")
    page.press("w")
    closer = shown(page)
    assert closer[1] - closer[0] < moved[1] - moved[0]
    page.press("0")
    assert shown(page) == whole


def test_a_plain_wheel_over_the_timeline_scrolls_and_does_not_zoom(show: Any) -> None:
    page = show(full())
    before = shown(page)
    box = page.box(LANES)
    page.mouse("mouseWheel", box["x"] + 400, box["y"] + 20, deltaX=0, deltaY=200)
    assert shown(page) == before


def test_an_event_is_read_by_a_click_and_found_by_its_name(show: Any) -> None:
    page = show(full(timeline=events(40), across=None))
    box = page.box(LANES)
    page.click(box["x"] + 230, box["y"] + 12)
    assert "kernel_0 · compute · 900 ns · at 0 · GPU 0 · stream 0" in text_of(page, "#event")
    enter(page, "#timeline input", "KERNEL_3")
    assert "4 events match" in text_of(page, "#event")
    page.run("document.querySelector('#timeline input').focus()")
    page.press("Enter")
    assert "kernel_3" in text_of(page, "#event")


def test_a_hundred_thousand_events_are_drawn_in_frames(show: Any, record_property: Any) -> None:
    page = show(full(timeline=pl.concat([events(50_000, rank=0), events(50_000, rank=1)])))
    assert "100,000 events" in text_of(page, "#timeline")
    run = f"""(async () => {{
        const canvas = document.querySelector('{LANES}'), box = canvas.getBoundingClientRect(), made = [];
        for (let i = 0; i < 40; i++) {{
            canvas.dispatchEvent(new WheelEvent('wheel', {{ctrlKey: true, deltaY: i < 20 ? -60 : 60,
                clientX: box.x + 700, clientY: box.y + 40, bubbles: true, cancelable: true}}));
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
            made.push([Number(canvas.dataset.frameMs), Number(canvas.dataset.drawn)]);
        }}
        return made;
    }})()"""
    frames = page.run(run)
    milliseconds = sorted(each[0] for each in frames)
    record_property("median_frame_ms", milliseconds[20])
    record_property("slowest_frame_ms", milliseconds[-1])
    print(f"\n100,000 events: median frame {milliseconds[20]:.1f} ms, slowest {milliseconds[-1]:.1f} ms")
    assert max(each[1] for each in frames) < 20_000  # what is drawn follows the pixels, not the events
    assert min(each[1] for each in frames) > 0
    assert page.complaints == []


def test_lanes_hold_every_event_once_none_overlap_and_what_is_drawn_covers_the_same_time(browser: Page) -> None:
    """The level of detail against adding up every event in every column of pixels."""
    random = np.random.default_rng(5)
    start = np.sort(random.integers(0, 2_000_000, 4000))
    frame = pl.DataFrame({"start_ns": start, "dur_ns": random.choice([0, 1, 40, 900, 60_000], 4000), "name": start % 7})
    frame = frame.sort("start_ns", "dur_ns", descending=[False, True])
    starts, durs = frame["start_ns"].to_list(), frame["dur_ns"].to_list()
    code = (
        (FOLDER / "lanes.js").read_text()
        + f"""
        const columns = {{start_ns: {starts}, dur_ns: {durs}, name: {frame["name"].to_list()}}};
        const lanes = spread({{values: key => columns[key]}}, 0, {len(frame)});
        const [from, to, width] = [150000, 1700000, 500], scale = width / (to - from);
        return lanes.map(lane => {{
            const cover = new Array(width).fill(0);
            const add = (a, b) => {{ for (let x = Math.max(0, Math.floor(a)); x < Math.min(width, b); x++)
                cover[x] += Math.max(0, Math.min(b, x + 1) - Math.max(a, x)); }};
            let last = -Infinity;
            lane.visit(from, to, scale, (i, x0, x1) => {{
                add(x0, x1);
                if (x0 < last) throw Error('backwards');
                last = x0;
            }}, (x, part) => {{ if (x >= 0) cover[x] += part; }});
            return {{rows: [...lane.rows], cover}};
        }});"""
    )
    browser.open(FOLDER / "page.css")
    lanes = browser.run(f"(() => {{ {code} }})()")
    assert sorted(row for lane in lanes for row in lane["rows"]) == list(range(len(frame)))
    scale = 500 / 1_550_000
    for lane in lanes:
        spans = [(starts[row], starts[row] + durs[row]) for row in lane["rows"]]
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
        edges = 150_000 + np.arange(501) / scale
        exact = np.zeros(500)
        for begin, end in spans:
            exact += np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0, None) * scale
        # A smeared column may hold the tail, below a pixel, of what ends in the next one.
        assert abs(np.cumsum(lane["cover"]) - np.cumsum(exact)).max() < 1.01
        assert abs(sum(lane["cover"]) - exact.sum()) < 1.01


# A point of the canvas within the first column's computing time, and what the style sheet calls that colour now.
PIXEL = """(() => {
    const context = document.querySelector('#steps canvas').getContext('2d');
    const [r, g, b] = context.getImageData(80, 280, 1, 1).data;
    return '#' + [r, g, b].map(each => each.toString(16).padStart(2, '0')).join('');
})()"""
WANTED = "getComputedStyle(document.documentElement).getPropertyValue('--compute')"


def test_the_charts_are_drawn_again_for_the_dark_scheme_and_for_paper(show: Any) -> None:
    page = show(full())
    light = page.run(PIXEL)
    assert light == page.run(WANTED)
    page.run("document.getElementById('scheme').click(); document.getElementById('scheme').click()")
    assert text_of(page, "#scheme") == "Dark"
    dark = page.run(PIXEL)
    assert light != dark == page.run(WANTED)
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(PIXEL) == light
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run(PIXEL) == dark
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.querySelector('.bar')).display") == "none"
    page.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("name", ["h100_qwen_18k", "cpu_only", "amd_mi250_minitoy", "vllm_decode_graph"])
def test_real_traces_are_drawn(name: str, show: Any) -> None:
    made, notes = timeline_of(read_trace(DATA / name / "rank-0.json.gz"))
    page = show(Content(title=name, timeline=made, notes=notes))
    assert f"{len(made):,} events" in text_of(page, "#timeline")
    assert page.run(f"Number(document.querySelector('{LANES}').dataset.drawn)") > 0
    assert page.complaints == []
