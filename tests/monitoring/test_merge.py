"""What the sections do to a dashboard that people own: nothing of theirs is lost or changed."""

from __future__ import annotations

import copy
import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from config.settings import Settings, SettingsError
from monitoring import classic
from monitoring import dashboard as d
from monitoring import panels as p
from monitoring.classic import dumps, load_dashboard
from monitoring.workers import VARIABLE

MakeSettings = Callable[..., Settings]
Json = dict[str, Any]

CASES = Path(__file__).parent / "cases"
DEFAULTS = Settings.model_construct(stack="", subnet_id="", prometheus_cidrs=())

OURS = set(p.OWN)


def walk(panels: object) -> Iterator[Json]:
    for panel in panels if isinstance(panels, list) else []:
        yield panel
        yield from walk(panel.get("panels"))


def is_ours(panel: Json) -> bool:
    """Whether it has the id, as Grafana compares it, and the title of one of the program's."""
    titles = {str(id_): title for id_, (title, _) in p.OWN.items()}
    id_ = _text(panel.get("id"))
    return id_ in titles and titles[id_] == panel.get("title")


def foreign(dashboard: Json) -> Json:
    """What is left without the program's panels and variable: written again, on purpose."""

    def rest(panels: list[Json]) -> list[Json]:
        return [
            {**panel, "panels": rest(panel["panels"])} if panel.get("panels") else panel
            for panel in panels
            if not is_ours(panel)
        ]

    result = copy.deepcopy(dashboard)
    result["panels"] = rest(result.get("panels") or [])
    templating = result.get("templating") or {}
    variables = [v for v in templating.get("list") or [] if v.get("name") != VARIABLE]
    result["templating"] = {**templating, "list": variables}
    return result


# -- what people have ------------------------------------------------------------------------------

IDS = st.one_of(
    st.integers(9080, 9210),
    st.integers(-2, 2**60),
    st.integers(0, 20),
    st.integers(9090, 9210).map(str),
    st.sampled_from([None, "", "a", True, 9100.0, 1e300, [9100], {"id": 9100}]),
)
TITLES = st.sampled_from(
    [*(title for title, _ in p.OWN.values()), "Mine", "", None, 7, ["Workers"]]
)
NUMBERS = st.one_of(st.integers(-5, 10**9), st.floats(0, 1e6), st.integers(0, 40))
PLACES = st.fixed_dictionaries({}, optional=dict.fromkeys("xywh", NUMBERS))
PANELS = st.fixed_dictionaries(
    {},
    optional={
        "id": IDS,
        "title": TITLES,
        "type": st.sampled_from(["row", "timeseries", "text"]),
        "gridPos": PLACES,
        "repeat": st.just("queue"),
        "targets": st.just([{"expr": "up{queue=~'$queue'}"}]),
    },
)
TREES = st.lists(
    st.recursive(
        PANELS,
        lambda inner: st.builds(
            lambda panel, panels, collapsed: {**panel, "collapsed": collapsed, "panels": panels},
            PANELS,
            st.one_of(st.none(), st.lists(inner, max_size=4)),
            st.booleans(),
        ),
        max_leaves=12,
    ),
    max_size=8,
)
VARIABLES = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["queue", "env", "datasource", "sba", None])},
        optional={"query": st.one_of(st.none(), st.text(max_size=5), st.just({"query": "q"}))},
    ),
    max_size=3,
)
DASHBOARDS = st.fixed_dictionaries(
    {"title": st.just("Theirs")},
    optional={
        "panels": st.one_of(st.none(), TREES, TREES),
        "templating": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {}, optional={"list": st.one_of(st.none(), VARIABLES), "note": st.just("kept")}
            ),
        ),
        "rows": st.sampled_from([None, []]),
        "editable": st.booleans(),
        "refresh": st.sampled_from(["", False, "5m"]),
        "schemaVersion": st.integers(0, 42),
        "__inputs": st.just([]),
        "uid": st.sampled_from([None, "", "theirs"]),
    },
)


@profile(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DASHBOARDS)
def test_nothing_of_theirs_is_lost_or_changed(theirs: Json) -> None:
    assume(not any(map(is_ours, _all(theirs))))
    before = copy.deepcopy(theirs)
    assert next(classic._problems(theirs), "") == ""
    # the one reason for a refusal: an id that Grafana would take for that of a panel of ours
    if taken := [one for one in _all(theirs) if _text(one.get("id")) in map(str, OURS)]:
        with pytest.raises(SettingsError, match=re.escape(repr(taken[0].get("title")))):
            d.with_sections(theirs, DEFAULTS)
        return
    merged = d.with_sections(theirs, DEFAULTS)
    assert theirs == before
    assert foreign(merged) == foreign(theirs)
    assert list(merged)[: len(theirs)] == list(theirs)  # the order of keys
    added = [one for one in walk(merged["panels"]) if one not in _all(theirs)]
    assert [one["id"] for one in added] == [one["id"] for one in _ours(merged)]
    assert {one["id"] for one in added} == OURS
    # by whatever way Grafana compares them
    assert not {str(id_) for id_ in OURS} & {_text(one.get("id")) for one in _all(theirs)}
    assert dumps(d.with_sections(merged, DEFAULTS)) == dumps(merged)
    assert dumps(d.without_sections(merged)) == dumps(theirs)
    bottom = max((_bottom(one) for one in theirs.get("panels") or []), default=0)
    assert min(one["gridPos"]["y"] for one in added) >= bottom


def _all(dashboard: Json) -> list[Json]:
    return list(walk(dashboard.get("panels")))


def _ours(dashboard: Json) -> list[Json]:
    return list(dashboard["panels"][-len(OURS) :])


def _text(id_: object) -> str:
    return f"{id_:.0f}" if isinstance(id_, float) else str(id_)


def _bottom(panel: Json) -> float:
    place = panel.get("gridPos") or {}
    return float(place.get("y", 0) + place.get("h", 0))


# -- cases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.json")))
def test_a_file_of_people_is_merged_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    before = (CASES / f"{name}.json").read_bytes()
    file = tmp_path / "dashboard.json"
    file.write_bytes(before)
    done = command(str(file))
    if name == "inner-panel-null":
        assert done.returncode == 1
        assert done.stderr == (
            f"metrics-proxy:grafana.dashboard: {file} has panels[0].panels[0] that is no object\n"
        )
        assert file.read_bytes() == before
        return
    assert (done.returncode, done.stderr) == (0, "")
    once = file.read_bytes()
    merged = load_dashboard(file)
    assert [one["id"] for one in _ours(merged)] == [
        one["id"] for one in _ours(d.with_sections({}, DEFAULTS))
    ]
    assert command(str(file)).returncode == 0
    assert file.read_bytes() == once
    assert command("--remove", str(file)).returncode == 0
    if name == "panel-added-in-grafana":  # our older section was in it
        assert [one["id"] for one in _all(load_dashboard(file))] == [9106]
    else:
        assert file.read_bytes() == before


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monitoring.dashboard", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_panel_added_in_grafana_is_deployed() -> None:
    dashboard = load_dashboard(CASES / "panel-added-in-grafana.json")
    added = dashboard["panels"][-1]
    merged = d.with_sections(dashboard, DEFAULTS)
    assert merged["panels"][0] == added
    assert len(merged["panels"]) == 1 + len(OURS)


def test_their_variable_stays_theirs() -> None:
    dashboard = load_dashboard(CASES / "own-queue-variable.json")
    merged = d.with_sections(dashboard, DEFAULTS)
    assert merged["templating"]["list"][:-1] == dashboard["templating"]["list"]
    assert [v["name"] for v in merged["templating"]["list"]] == ["queue", VARIABLE]


def test_panels_without_ids_are_there_when_grafana_has_numbered_them() -> None:
    dashboard = d.with_sections(load_dashboard(CASES / "panels-without-ids.json"), DEFAULTS)
    highest = max(one.get("id", 0) for one in dashboard["panels"])
    numbered = [
        {**one, "id": one.get("id", highest + 1 + number)}
        for number, one in enumerate(dashboard["panels"])
    ]
    again = d.with_sections({**dashboard, "panels": numbered}, DEFAULTS)
    assert again["panels"] == numbered


# -- the file --------------------------------------------------------------------------------------

TEXT = json.dumps({"title": "é", "panels": [{"id": 1, "title": "<&>"}], "x": {"b": [], "a": 1.0}})


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "form",
    [{"indent": 2}, {"indent": 4}, {"indent": "\t"}, {"separators": (",", ":")}],
    ids=["2", "4", "tab", "compact"],
)
@pytest.mark.parametrize("ascii_", [True, False])
def test_a_file_keeps_its_form(
    tmp_path: Path, end: str, mark: str, form: dict[str, Any], ascii_: bool
) -> None:
    text = mark + json.dumps(json.loads(TEXT), ensure_ascii=ascii_, **form) + end
    file = tmp_path / "dashboard.json"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    d.main([str(link)])
    assert len(file.read_text(encoding="utf-8")) > len(text) + 1000
    assert (file.read_text(encoding="utf-8").count("\n") > 100) == ("indent" in form)
    d.main(["--remove", str(link)])
    assert file.read_text(encoding="utf-8") == text
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dashboard.json", "link.json"]


def test_half_a_character_stays_escaped_beside_whole_ones(tmp_path: Path) -> None:
    text = '{\n  "title": "é \\ud83d"\n}\n'
    file = tmp_path / "dashboard.json"
    file.write_text(text, encoding="utf-8")
    d.main([str(file)])
    d.main(["--remove", str(file)])
    assert file.read_text(encoding="utf-8") == text


def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dashboard.json"
    file.write_text(TEXT)

    def full(path: Path, _: bytes) -> int:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        d.main([str(file)])
    assert file.read_text() == TEXT
    assert [path.name for path in tmp_path.iterdir()] == ["dashboard.json"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ('{"title": "x", "y": NaN}', "NaN is no number"),
        ('{"title": "x", "y": 1e999}', "1e999 is no number"),
        ('{"title": "x", "y": ' + "[" * 5000 + "]" * 5000 + "}", "recursion"),
        ("[]", "a JSON object is expected"),
        ('{"apiVersion": "dashboard.grafana.app/v1", "title": "x"}', "v2 or Kubernetes-style"),
        ('{"spec": {}, "title": "x"}', "v2 or Kubernetes-style"),
        ('{"elements": {}, "title": "x"}', "v2 or Kubernetes-style"),
        ('{"dashboard": {"title": "x"}, "title": "x"}', "wraps the dashboard"),
        ("{}", "has no title"),
        ('{"title": " "}', "has no title"),
        ('{"title": "x", "uid": "' + 41 * "u" + '"}', "at most 40 letters"),
        ('{"title": "x", "uid": "a b"}', 'has the uid "a b"'),
        ('{"title": "x", "uid": 7}', "has the uid 7"),
        ('{"title": "x", "rows": [{}]}', "has rows"),
        ('{"title": "x", "panels": {}}', "has panels that is no list"),
        ('{"title": "x", "panels": [null]}', "has panels[0] that is no object"),
        ('{"title": "x", "panels": [{"panels": {}}]}', "has panels[0].panels that is no list"),
        ('{"title": "x", "panels": [{}, {"panels": [[]]}]}', "panels[1].panels[0] that is no obj"),
        ('{"title": "x", "panels": [{"gridPos": null}]}', "panels[0].gridPos that is no object"),
        ('{"title": "x", "panels": [{"gridPos": []}]}', "panels[0].gridPos that is no object"),
        ('{"title": "x", "panels": [{"gridPos": {"y": null}}]}', "gridPos that holds no numbers"),
        ('{"title": "x", "panels": [{"gridPos": {"h": "8"}}]}', "gridPos that holds no numbers"),
        ('{"title": "x", "templating": []}', "templating that is no object"),
        ('{"title": "x", "templating": {"list": {}}}', "templating.list"),
        ('{"title": "x", "templating": {"list": ["queue"]}}', "templating.list"),
        ('{"title": "x", "__inputs": {}}', "__inputs that are no list"),
        (
            '{"title": "x ${VAR}", "__inputs": [{"name": "VAR", "type": "constant"}]}',
            "input VAR is no Prometheus data source",
        ),
        (
            '{"title": "x", "panels": [{"datasource": "${DS}"}], "__inputs": '
            '[{"name": "DS", "type": "datasource", "pluginId": "loki"}]}',
            "input DS is no Prometheus data source",
        ),
    ],
)
def test_a_file_that_is_no_classic_dashboard_is_refused(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    file = tmp_path / "dashboard.json"
    if text is not None:
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=re.escape(problem)) as refusal:
        load_dashboard(file)
    line = str(refusal.value)
    assert line.startswith(f"metrics-proxy:grafana.dashboard: {file} ")
    assert "\n" not in line


@pytest.mark.parametrize(
    "text",
    ['{"title": "x"}', '{"title": "x", "templating": null}', '\ufeff{"title": "x", "rows": []}'],
)
def test_a_bare_dashboard_is_accepted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dashboard.json"
    file.write_text(text, encoding="utf-8")
    assert len(d.with_sections(load_dashboard(file), DEFAULTS)["panels"]) == len(OURS)


# -- in the way ------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", [9101, "9101", 9101.0])
def test_a_panel_with_an_id_of_ours_is_refused_by_name(id_: object) -> None:
    row = {"id": 5, "type": "row", "panels": [{"id": id_, "title": "Mine"}]}
    with pytest.raises(SettingsError) as refusal:
        d.with_sections({"title": "x", "panels": [row]}, DEFAULTS)
    assert str(refusal.value) == (
        f"metrics-proxy:grafana.dashboard: the panel 'Mine' has the id {id_}, which is that of the "
        "program's 'Workers Throughput'; give it another id"
    )


def test_a_variable_with_the_name_of_ours_is_refused() -> None:
    theirs = {"name": VARIABLE, "query": {"query": "label_values(up, job)"}}
    with pytest.raises(SettingsError, match="its variable 'sba_queue' has the name"):
        d.with_sections({"title": "x", "templating": {"list": [theirs]}}, DEFAULTS)


def test_panels_that_were_moved_between_rows_are_found() -> None:
    clean = d.with_sections({"title": "SBA"}, DEFAULTS)
    row, *ours = clean["panels"]
    theirs = {"id": 7, "type": "text", "gridPos": {"x": 0, "y": 3, "w": 6, "h": 4}}
    moved = {
        **clean,
        "panels": [
            {"id": 5, "type": "row", "collapsed": True, "panels": [ours[0]]},
            {**row, "collapsed": True, "panels": [*ours[1:], theirs]},
        ],
    }
    after = d.with_sections(moved, DEFAULTS)["panels"]
    assert after[:2] == [{"id": 5, "type": "row", "collapsed": True, "panels": []}, theirs]
    assert [one["id"] for one in after[2:]] == [one["id"] for one in clean["panels"]]
    assert after[2]["gridPos"]["y"] == 7


def test_new_limits_replace_the_old_sections(settings: MakeSettings) -> None:
    theirs = load_dashboard(CASES / "panels-without-ids.json")
    old = d.with_sections(theirs, settings(workers={"queues": {"gone": {}}}))
    new = settings(workers={"queueDepth": {"warning": 1, "critical": 2}})
    assert d.with_sections(old, new) == d.with_sections(theirs, new)


def test_what_people_added_since_survives_the_removal() -> None:
    merged = d.with_sections({"title": "x", "templating": None}, DEFAULTS)
    panel, variable = {"id": 9200, "title": "Mine"}, {"name": "env"}
    merged["panels"].append(panel)
    merged["templating"]["list"].append(variable)
    assert d.without_sections(merged) == {
        "title": "x",
        "templating": {"list": [variable]},
        "panels": [panel],
    }


# -- what Grafana is given -------------------------------------------------------------------------


@pytest.mark.parametrize(("uid", "expected"), [(None, "ours"), ("mine", "mine")])
def test_uid_is_the_files_unless_the_settings_say_otherwise(
    settings: MakeSettings, uid: str | None, expected: str
) -> None:
    chosen = settings(grafana={"dashboardUid": uid} if uid else {})
    assert d.deployable({"title": "x", "uid": "ours"}, chosen)["uid"] == expected


PROMETHEUS = {"name": "DS_PROM", "type": "datasource", "pluginId": "prometheus"}


@pytest.mark.parametrize("uid", ["mimir", "${source}"])
def test_an_input_that_is_used_is_filled_in(settings: MakeSettings, uid: str) -> None:
    dashboard = {
        "__inputs": [PROMETHEUS, {"name": "UNUSED", "type": "constant"}],
        "title": "x",
        "panels": [
            {"id": 1, "datasource": {"type": "prometheus", "uid": "${DS_PROM}"}},
            {"id": 2, "datasource": "${DS_PROM}", "targets": [{"expr": "up{a='${DS_PROM_X}'}"}]},
        ],
        "templating": {"list": [{"name": "source", "type": "datasource"}]},
    }
    before = copy.deepcopy(dashboard)
    chosen = settings(grafana={"datasourceUid": uid, "alertDatasourceUid": "mimir"})
    given_ = d.deployable(dashboard, chosen)
    assert given_["panels"][:2] == [
        {"id": 1, "datasource": {"type": "prometheus", "uid": uid}},
        {"id": 2, "datasource": uid, "targets": [{"expr": "up{a='${DS_PROM_X}'}"}]},
    ]
    assert dashboard == before


def test_an_input_of_which_there_is_a_variable_is_that_variable(settings: MakeSettings) -> None:
    panel = {"id": 1, "datasource": {"uid": "${DS_PROM}"}}
    dashboard = {
        "__inputs": [PROMETHEUS],
        "title": "x",
        "panels": [panel],
        "templating": {"list": [{"name": "DS_PROM", "type": "datasource"}]},
    }
    assert d.deployable(dashboard, settings())["panels"][0] == panel


def test_the_datasource_of_the_sections_may_be_a_variable(settings: MakeSettings) -> None:
    chosen = settings(grafana={"datasourceUid": "${source}", "alertDatasourceUid": "mimir"})
    variable = {"name": "source", "type": "datasource", "query": "prometheus"}
    merged = d.deployable({"title": "x", "templating": {"list": [variable]}}, chosen)
    for panel in merged["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == panel["datasource"]
            assert target["datasource"] == {"type": "prometheus", "uid": "${source}"}
    with pytest.raises(
        SettingsError, match=r"grafana\.datasourceUid: \$\{source\} is no variable of the dashboard"
    ):
        d.deployable({"title": "x"}, chosen)
