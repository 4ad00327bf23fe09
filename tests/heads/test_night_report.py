"""The report of a night: one file whose numbers are the outcome's, whatever a night, a class or a file is called."""

import base64
import re
from datetime import date, timedelta

import pytest

from heads.reporting import axes, charts, night
from heads.reporting.night import Disagreement, Disagreements, NightPage, render
from heads.reporting.page import Axis, points
from pages import HOSTILE, Page

PERCENT = "\u202f%"


def thumbnail(uri):
    return b"GIF8" + uri.encode()


def check(name, status="ok", value=0, limit=1, level="warn", reason=""):
    return {"name": name, "level": level, "value": value, "limit": limit, "status": status, "reason": reason}


def outcome(**more):
    """A night on which a better head took the champion's place."""
    return {
        "run_id": "run-30",
        "recipe": "photos",
        "date": "2026-11-30",
        "repeated": False,
        "decision": "promoted",
        "reason": "logreg is better than the champion.",
        "embed": {"new": 1312, "changed": 21, "removed": 22, "failed": 23, "failures": {"truncated": 19, "empty": 4}},
        "labels": {"added": 1296, "changed": 24},
        "checks": [
            check("failures", "ok", 0.0175, 0.05, reason="23 of 1,312 new files failed."),
            check("drift", "warn", 0.8614, 0.8, reason="the new ones are bluer"),
            check("vanished", "block", 2, 0, "block", reason="weir, lock"),
            check("copies", "ok", None, 0.01, "off"),
        ],
        "champion": {"head_id": "head-old", "score": 0.921, "ci": [0.903, 0.936]},
        "challenger": {
            "head_id": "head-new",
            "head": "logreg",
            "params": {"C": 3.0},
            "score": 0.943,
            "ci": [0.931, 0.957],
        },
        "difference": {"value": 0.022, "ci": [0.0123, 0.0345], "p_value": 0.0042, "step": 0.0056},
        "test": {
            "metric": "top1",
            "rule": "better",
            "margin": 0.005,
            "decisions": 12,
            "old": {"n": 1001, "champion": 0.931, "challenger": 0.942},
            "new": {"n": 203, "champion": 0.872, "challenger": 0.948},
        },
        "n": {"train": 5972, "val": 946, "test": 1204, "classes": 17},
        "notes": ["a note"],
        "report": "report.html",
        "published": "exports/7",
        "seconds": {"embed": 212.4, "compare": 53.1, "total": 282.8},
        **more,
    }


def page_of(told, **more):
    html = render(NightPage(told, **more))
    page = Page(html)
    page.check_alone()
    page.html, page.text = html, re.sub(r"\s+", " ", page.text[page.text.index("penult ·") :].replace("\u202f%", "%"))
    return page


def words_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html).replace(PERCENT, "%")).strip()


def nights(count, start="2026-11-01", promoted=(), blocked=(), **more):
    """Nights whose champion scores 0.80, 0.81, …, with 1,000, 1,100, … training images."""
    told = []
    for i in range(count):
        score = round(0.8 + 0.01 * (i % 15), 2)
        head = {"head_id": f"head-{i}", "score": score, "ci": [score - 0.02, score + 0.03]}
        decision = "promoted" if i in promoted else "blocked" if i in blocked else "kept"
        challenger = {"challenger": {**outcome()["challenger"], **head}} if i in promoted else {}
        day = str(date.fromisoformat(start) + timedelta(i))
        n = {"train": 1000 + 100 * i, "val": 5, "test": 6, "classes": 7}
        told.append(outcome(date=day, decision=decision, champion=head, n=n, **challenger, **more))
    return told


# -- what it says ------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_outcome():
    page = page_of(outcome(), earlier=nights(29))
    for shown in (
        "penult · photos · night of 2026-11-30 A new champion logreg is better than the champion.",
        "champion now94.3% challenger − champion+2.2 points new images1,312 checks1 blocked, 1 warning, 1 passed",
        "champion head-old 92.1%90.3–93.6",
        "challenger logreg, C 3.0head-new 94.3%93.1–95.7",
        "Difference+2.20 points, 95 % interval +1.23 to +3.45",
        "p-value0.004",
        "Rulebetter: the whole interval must lie above +0.50 points",
        "Step0.56 points, which the difference must exceed",
        "Test split1,204 images; has decided 12 nights, this one included",
        "there when the champion was made1,00193.1%94.2% +1.10",
        "came since20387.2%94.8% +7.60",
        "new images1,312 changed images21 removed images22 failed files23 labels added1,296 labels changed24",
        "19 failed: truncated 4 failed: empty",
        "training images5,972 3,800+2,172",
        "classes17 7+10",
        "embed3 min 32 s compare53.1 s total4 min 43 s",
        "a note",
        "run-30",
        "exports/7",
    ):
        assert shown in page.text, shown
    titles = re.findall(r"<h2>(.*?)</h2>", page.html)
    assert titles == ["Checks", "Champion and challenger", "Over time", "Data", "Time", "Notes", "This night"]
    assert page_of(outcome(difference={**outcome()["difference"], "p_value": 1e-9})).text.count("below 0.001") == 1
    assert "Ladder" not in page_of(outcome(test={**outcome()["test"], "rule": "not-worse"})).text


def test_the_head_in_use_is_marked():
    for decision, role in (("promoted", "challenger"), ("kept", "champion"), ("blocked", "champion")):
        page = page_of(outcome(decision=decision))
        assert re.findall(r'<tr class="winner">\s*<td>(\w+)</td>', page.html) == [role]
        score = {"challenger": "94.3%", "champion": "92.1%"}[role]
        assert f"champion now{score}" in page.text and f'class="verdict {decision}"' in page.html


def test_intervals_of_both_heads_share_an_axis():
    page = page_of(outcome())
    drawn = re.findall(r'class="(?:range|dot)" vector-effect="non-scaling-stroke" d="M(\S+) 7[Hh]([^"]+)"', page.html)
    assert "90% 95%" not in page.text and "90%100%" in page.text
    assert drawn == [("3.0", "36.0"), ("21.0", ".001"), ("31.0", "57.0"), ("43.0", ".001")]
    assert Axis.of([(1.0, 1.0)]) == Axis(0.95, 1.0) and Axis.of([(0.0, 0.0)]) == Axis(0.0, 0.05)
    assert Axis.of([]) == Axis(0.0, 1.0)


def test_checks_are_told_the_worst_first_and_without_colour():
    page = page_of(outcome())
    rows = re.findall(r"<tr>\s*<td><span class=\"status.*?</tr>", page.html, re.S)
    told = [words_of(row) for row in rows]
    assert told == [
        "✕ blocked Classes that vanished weir, lock 2 0",
        "! warning New images unlike the training images the new ones are bluer 0.861 0.800",
        "✓ passed New files that failed 23 of 1,312 new files failed. 1.8% 5.0%",
        "– off Near-copies of training images in test – 1.0%",
    ]
    warned = [check("drift", "warn"), check("flips", "warn"), check("a new one", value=0.123456, limit=None)]
    page = page_of(outcome(checks=warned))
    assert "checks2 warnings, 1 passed" in page.text and "✓ passed a new one 0.1235 –" in page.text
    assert "checksoff" in page_of(outcome(checks=[check("flips", level="off")])).text
    assert "No check ran." in page_of(outcome(checks=[])).text


def test_images_that_moved_a_warning_or_a_block_are_shown():
    examples = {
        "vanished": [f"file:///weir/{i}.jpg" for i in range(300)],
        "drift": ["s3://b/1.png", "s3://b/2.png"],
        "failures": ["file:///x.jpg"],
    }
    page = page_of(outcome(), examples=examples, thumbnail=thumbnail)
    figures = re.findall(
        r'<figure title="([^"]*)">\s*<img src="data:image/gif;base64,([^"]*)" alt="([^"]*)"', page.html
    )
    assert [uri for uri, *_ in figures] == examples["vanished"][: night.MOST] + examples["drift"]
    for uri, source, name in figures:
        assert base64.b64decode(source) == thumbnail(uri) and name == uri.rpartition("/")[2]
    assert "Classes that vanished: 16 of 300 images" in page.text and "The other 284 names" in page.text
    assert "New images unlike the training images: 2 images" in page.text
    listed = re.findall(r'<li dir="ltr">(file:[^<]*)</li>', page.html)
    assert listed == examples["vanished"][night.MOST :] and "x.jpg" not in page.text


def test_files_without_pictures_are_named():
    examples = {"vanished": [f"file:///weir/{i}.jpg" for i in range(20)]}
    for nothing in (None, b"<svg onload='alert(1)'/>"):
        page = page_of(outcome(), examples=examples, thumbnail=lambda uri, nothing=nothing: nothing)
        assert "img" not in page.tags and "no image" not in page.text and "Their 20 names" in page.text
        assert re.findall(r'<li dir="ltr">(file:[^<]*)</li>', page.html) == examples["vanished"]
    some = page_of(outcome(), examples=examples, thumbnail=lambda uri: thumbnail(uri) if "7" in uri else None)
    assert some.tags.count("img") == 1 and some.text.count("no image") == 15  # 17.jpg is not among the first 16


def test_disagreements_are_grouped_by_who_is_right():
    shown = [
        Disagreement("file:///0.jpg", "cat", "dog", "cat"),
        Disagreement("file:///1.jpg", "cat", "cat", "cow"),
        Disagreement("file:///2.jpg", "cat", "owl", "emu"),
        *(Disagreement(f"file:///{i}.jpg", "ape", "bee", "ape") for i in range(3, 30)),
    ]
    page = page_of(outcome(), disagreements=Disagreements(1041, 17, 1, shown), thumbnail=thumbnail)
    html = page.html[page.html.index("<h2>Disagreements") :]
    assert "The two heads give 1,059 test images different labels." in page.text
    groups = [words_of(group) for group in html.split("<h3>")[1:]]
    assert groups[0].startswith("Only the challenger is right: 1,041 cat champion: dog ape champion: bee ape")
    assert groups[1] == "Only the champion is right: 17 cat challenger: cow"
    assert groups[2].startswith("Both are wrong: 1 cat champion: owl challenger: emu ")
    assert groups[0].count("champion: bee") == night.MOST - 1
    assert re.findall(r'class="(\w+)" style="flex-grow: (\d+)"', html) == [
        ("challenger", "1041"), ("champion", "17"), ("neither", "1"),
    ]  # fmt: skip
    titles = re.findall(r'<figure title="file:///(\d+).jpg">', html)
    assert titles[0] == "0" and titles[-2:] == ["1", "2"]


def test_heads_that_agree():
    page = page_of(outcome(), disagreements=Disagreements())
    assert "give every test image the same label" in page.text and "Only the" not in page.text
    assert "Disagreements" not in page_of(outcome()).text


# -- nights that lack something ----------------------------------------------------------------------------------------


def test_a_first_night():
    page = page_of(outcome(champion=None, difference=None, reason="there was no champion."))
    assert "There was no champion before tonight." in page.text and "A new champion there was no" in page.text
    for absent in ("challenger − champion", "p-value", "Old and new", "before change", "in use now"):
        assert absent not in page.text, absent
    assert "There are not yet two nights to draw." in page.text and "training images5,972" in page.text


def test_a_blocked_night():
    champion = {"head_id": "head-old", "score": None, "ci": None}
    nothing = dict.fromkeys(("challenger", "difference", "test", "n", "published"))
    page = page_of(outcome(decision="blocked", champion=champion, **nothing), earlier=nights(3))
    assert "Blocked" in page.text and "No head was made tonight." in page.text
    assert "champion nownot scored" in page.text and "head-old not scored" in page.text
    assert "Scores are" not in page.text and "Published" not in page.text and "0%100%" not in page.text
    assert "Champion: top-1" in page.text  # of the nights before


def test_a_night_whose_champion_cannot_be_scored():
    champion = {"head_id": "head-old", "score": None, "ci": None}
    test = {**outcome()["test"], "old": {"n": 1204, "champion": None, "challenger": 0.94}, "new": {"n": 0}}
    page = page_of(outcome(champion=champion, difference=None, test=test), earlier=nights(3))
    assert "head-old not scored" in page.text and "The marked head is in use now." in page.text
    assert "made1,204–94.0% –" in page.text and "came since" not in page.text


@pytest.mark.parametrize("decision", ["unchanged", "planned", "failed"])
def test_a_night_with_nothing_to_show(decision):
    nothing = ("embed", "labels", "champion", "challenger", "difference", "test", "n", "published", "report")
    bare = dict.fromkeys(nothing) | {"checks": [], "notes": [], "seconds": {}}
    page = page_of(outcome(decision=decision, **bare))
    assert {"unchanged": "Nothing changed", "planned": "A plan", "failed": "Failed"}[decision] in page.text
    assert "There is no champion, and no head was made tonight." in page.text and "Notes" not in page.text
    least = {key: value for key, value in outcome(decision=decision, **bare).items() if key not in bare}
    assert page_of(least).text == page.text


def test_earlier_nights_in_any_order_and_of_another_metric():
    told = nights(4, promoted={2})
    told[1]["test"] = {**told[1]["test"], "metric": "macro_f1"}
    again = [*reversed(told), outcome(recipe="the same night, told twice")]
    page = page_of(outcome(), earlier=again)
    rows = re.findall(r"<tr><td>(2026-11-\d\d)</td><td>([^<]*)</td>", page.html)
    assert rows == [
        ("2026-11-30", "A new champion"), ("2026-11-04", "The champion stays"), ("2026-11-03", "A new champion"),
        ("2026-11-02", "The champion stays"), ("2026-11-01", "The champion stays"),
    ]  # fmt: skip
    figure = page.html[page.html.index("<h3>Champion: top-1") :]
    assert len(re.findall(r'<circle class="first"', figure[: figure.index("</figure>")])) == 4
    late = page_of(outcome(date="2026-11-02"), earlier=told)
    assert "4 nights in numbers" in late.text
    assert re.findall(r"<tr><td>2026-11-0(\d)</td>", late.html) == ["4", "3", "2", "1"]
    assert "training images5,972 1,000+4,972" in late.text


# -- whatever it is called ---------------------------------------------------------------------------------------------


def test_nothing_that_a_name_can_smuggle_in():
    told = outcome(
        recipe=HOSTILE,
        reason=HOSTILE,
        run_id=HOSTILE,
        published=HOSTILE,
        notes=[HOSTILE],
        checks=[check("drift", "warn", reason=HOSTILE), check(HOSTILE, "block", reason="")],
        seconds={HOSTILE: 1.0},
        embed={"new": 1, "failures": {HOSTILE: 1}},
        champion={"head_id": HOSTILE, "score": 0.5, "ci": [0.4, 0.6]},
    )
    uris = [f"file:///{HOSTILE}/{i} {HOSTILE}.jpg" for i in range(20)]
    shown = [Disagreement(uris[0], HOSTILE, "a", HOSTILE), Disagreement(uris[1], "a", HOSTILE, "b")]
    page = page_of(told, disagreements=Disagreements(1, 0, 1, shown), examples={HOSTILE: uris}, thumbnail=thumbnail)
    assert page.text.count(HOSTILE) >= 20 and "<script" not in page.html and "49" not in page.text
    title = re.search("<title>(.*?)</title>", page.html)[1]
    assert "&lt;script&gt;" in title


def test_names_from_right_to_left_stand_apart():
    """A name cannot turn around the words beside it, not even by an override that it does not end."""
    name = "\u202eגדול"
    shown = [Disagreement("file:///0.jpg", name, "dog", name)]
    told = outcome(reason=f"{name} appeared", notes=[f"{name} is new"], checks=[check("appeared", reason=name)])
    page = page_of(told, disagreements=Disagreements(1, 0, 0, shown))
    assert page.html.count(name) == 4
    for before in re.findall(rf"(<[^>]*>)\s*{name}", page.html):
        assert before == "<bdi>" or 'dir="ltr"' in before


def test_no_reference_leads_outside():
    page = page_of(outcome(), earlier=nights(5), disagreements=Disagreements(1, 1, 1), thumbnail=thumbnail)
    assert "http" not in page.html.replace("http-equiv", "") and "//" not in page.html


# -- charts ------------------------------------------------------------------------------------------------------------


def night_of(day, score, decision="kept", images=None):
    ci = None if score is None else (score - 0.02, score + 0.03)
    return charts.Night(date.fromisoformat(day), decision, score, ci, images)


def place(chart, text):
    """The position of a tick."""
    return next(at for at, name in [*chart.x_ticks, *chart.y_ticks] if name == text)


def test_scores_are_drawn_where_they_are():
    told = [
        night_of("2026-11-01", 0.80, "promoted"),
        night_of("2026-11-02", 0.82),
        night_of("2026-11-03", None, "blocked"),
        night_of("2026-11-05", 0.90, "promoted"),
        night_of("2026-11-06", 0.88),
    ]
    chart = charts.scores_over_nights(told, "macro F1")
    assert (chart.title, chart.x_name) == ("Champion: macro F1", "night")
    assert [name for _, name in chart.x_ticks] == [f"{day} Nov" for day in range(1, 7)]
    assert [name for _, name in chart.y_ticks] == [f"{share}{PERCENT}" for share in (75, 80, 85, 90, 95)]
    champion, promoted, blocked = chart.lines
    x = {day: place(chart, f"{day} Nov") for day in (1, 2, 3, 5, 6)}
    low, high = place(chart, f"75{PERCENT}"), place(chart, f"95{PERCENT}")

    def y(share):
        return pytest.approx(low + (high - low) * (share - 0.75) / 0.2, abs=0.06)

    expected = [(x[1], y(0.80)), (x[2], y(0.82)), (x[5], y(0.90)), (x[6], y(0.88))]
    assert [dot[:2] for dot in champion.dots] == expected
    assert [dot[:2] for dot in promoted.dots] == [expected[0], expected[2]]
    reigns = re.findall(r"M(\S+) (\S+)L(\S+) (\S+)h.001", champion.path)
    assert [[float(v) for v in reign] for reign in reigns] == [
        [x[1], y(0.80), x[2], y(0.82)], [x[5], y(0.90), x[6], y(0.88)],
    ]  # fmt: skip
    intervals = re.findall(r"M(\S+) (\S+)V([\d.]+)", champion.raw)
    scored = ((1, 0.80), (2, 0.82), (5, 0.90), (6, 0.88))
    assert [tuple(map(float, one)) for one in intervals] == [(x[day], y(s - 0.02), y(s + 0.03)) for day, s in scored]
    below = f" {chart.box[3] + 5}"
    assert promoted.path == "".join(f"M{x[day]:g}{below}{charts.TRIANGLE}" for day in (1, 5))
    assert blocked.path == f"M{x[3]:g}{below}{charts.CROSS}"
    assert (champion.colour, promoted.colour, blocked.colour) == ("first", "mark", "second")
    assert (promoted.name, blocked.name) == ("a new champion", "blocked")
    assert promoted.swatch != blocked.swatch != champion.swatch
    (alone,) = charts.scores_over_nights([night_of("2026-11-01", 0.8), night_of("2026-11-02", 0.8)], "top-1").lines
    assert alone.name.startswith("champion, with 95")


def test_the_data_is_drawn_from_none():
    told = [night_of(f"2026-11-0{day}", None, images=images) for day, images in ((1, 1000), (2, None), (3, 3500))]
    chart = charts.images_over_nights(told)
    (line,) = chart.lines
    assert [name for _, name in chart.y_ticks] == ["0", "1k", "2k", "3k", "4k"]
    none, most = place(chart, "0"), place(chart, "4k")
    x = [place(chart, "1 Nov"), place(chart, "3 Nov")]
    expected = [
        (at, pytest.approx(none + (most - none) * n / 4000, abs=0.06)) for at, n in zip(x, (1000, 3500), strict=True)
    ]
    assert [dot[:2] for dot in line.dots] == expected and line.name == "3,500 images on the last night"
    assert [name for _, name in charts.images_over_nights([night_of("2026-11-01", None, images=0)]).y_ticks] == [
        "0",
        "1",
    ]


def test_a_year_stays_legible():
    told = nights(365, "2026-01-15", promoted=range(0, 365, 30), blocked={40, 200})
    page = page_of(outcome(date="2027-01-15"), earlier=told)
    for swatch in (charts.TRIANGLE, charts.CROSS):
        assert f'd="M11 6{swatch}"' in page.html
    assert len(page.html) < 200_000 and "366 nights in numbers" in page.text
    chart = charts.scores_over_nights([night._night(one, "top1") for one in told], "top-1")
    champion, promoted, blocked = chart.lines
    assert champion.dots == [] and len(promoted.dots) == 13 and promoted.dots[0][2] < charts.DOT
    assert champion.path.count("M") == 13 and blocked.path.count("M") == 2
    assert [name for _, name in chart.x_ticks] == ["Apr", "Jul", "Oct", "2027"]
    inside = range(axes.LEFT, axes.WIDTH - axes.RIGHT + 1)
    drawn = [float(x) for x in re.findall(r"M(\S+) ", champion.raw)]
    assert all(int(x) in inside for x in drawn)
    assert drawn[0] - axes.LEFT == pytest.approx(axes.WIDTH - axes.RIGHT - drawn[-1], abs=0.11) and drawn[0] > 60
    at_most = charts.scores_over_nights([night._night(one, "top1") for one in nights(45)], "top-1")
    assert len(at_most.lines[0].dots) == 45


@pytest.mark.parametrize(
    ("first", "days", "names"),
    [
        ("2026-11-01", 1, ["1 Nov"]),
        ("2026-12-31", 2, ["31 Dec", "1 Jan"]),
        ("2026-11-01", 6, [f"{day} Nov" for day in range(1, 7)]),
        ("2026-11-01", 7, ["1 Nov", "3 Nov", "5 Nov", "7 Nov"]),
        ("2026-11-01", 30, ["1 Nov", "8 Nov", "15 Nov", "22 Nov", "29 Nov"]),
        ("2026-11-01", 84, ["1 Nov", "15 Nov", "29 Nov", "13 Dec", "27 Dec", "10 Jan"]),
        ("2026-11-01", 85, ["Dec", "2027"]),
        ("2026-11-10", 365, ["2027", "Apr", "Jul", "Oct"]),
        ("2026-11-10", 3 * 365, ["2027", "2028", "2029"]),
        ("2020-06-01", 20 * 365, ["2025", "2030", "2035", "2040"]),
    ],
)
def test_ticks_are_round_dates(first, days, names):
    start = date.fromisoformat(first).toordinal()
    ticks = axes.round_dates(start, start + days - 1)
    assert [name for _, name in ticks] == names and len(ticks) <= 6
    assert all(start <= day < start + days for day, _ in ticks)


@pytest.mark.parametrize("rule, margin", [("better", 0.005), ("not-worse", 0.01), ("better", 0.0)])
def test_the_difference_is_drawn_against_the_margin(rule, margin):
    told = outcome(test={**outcome()["test"], "rule": rule, "margin": margin})
    threshold = {"better": margin, "not-worse": -margin}[rule]
    made = night._difference(told["difference"], told["test"])
    assert made["threshold"] == threshold
    chart = made["chart"]
    (x0, t0), (x1, t1) = chart.x_ticks[0], chart.x_ticks[-1]
    t0, t1 = (float(text.replace("−", "-")) / 100 for text in (t0, t1))

    def x(value):
        return pytest.approx(x0 + (x1 - x0) * (value - t0) / (t1 - t0), abs=0.06)

    zone, none, *step, tonight = chart.lines
    assert [float(re.match(r"M(\S+) ", line.path)[1]) for line in step] == [x(0.0056)] * (rule == "better")
    start, middle, end = map(float, re.fullmatch(r"M(\S+) (\S+)H(\S+)", zone.path).groups())
    assert (start, end) == (x(threshold), x1) and middle == (chart.box[1] + chart.box[3]) / 2
    assert float(re.match(r"M(\S+) ", none.path)[1]) == x(0.0)
    low, high = map(float, re.fullmatch(r"M(\S+) \S+v12m0 -6H(\S+)m0 -6v12", tonight.path).groups())
    assert (low, high) == (x(0.0123), x(0.0345)) and tonight.dots == [(x(0.022), middle, 5.0)]
    assert t0 < min(0, threshold) and t1 > 0.0345 and "0" in [text for _, text in chart.x_ticks]
    assert f"must lie above {points(threshold)} points" in page_of(told).text


def test_a_step_beyond_the_interval_is_inside_the_chart():
    chart = charts.difference(0.001, (-0.002, 0.004), 0.0, step=0.03)
    assert float(re.match(r"M(\S+) ", chart.lines[2].path)[1]) < chart.box[2]


def test_no_difference_at_all_has_room():
    chart = charts.difference(0.0, (0.0, 0.0), 0.0)
    assert len(chart.x_ticks) > 2 and chart.lines[2].dots[0][0] == pytest.approx((axes.LEFT + 440 - axes.RIGHT) / 2)


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (200.4, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7512, "2 h 5 min"),
    ],
)
def test_times_in_words(seconds, text):
    assert night.duration(seconds).replace("\u202f", " ") == text


def test_stages_have_bars_beside_the_longest_and_the_total_has_none():
    rows = night._seconds({"total": 5.0, "embed": 4.0, "compare": 1.0})
    assert [(row["stage"], row["bar"]) for row in rows] == [("embed", 100.0), ("compare", 25.0), ("total", None)]
    assert [row["bar"] for row in night._seconds({"embed": 0.0})] == [None]


def test_differences_in_points():
    assert [points(x) for x in (0.0123, -0.003, 0.0, 0.00001, -0.00001)] == ["+1.23", "−0.30", "0", "0", "0"]
    assert points(0.0123, 1) == "+1.2"
