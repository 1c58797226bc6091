"""The dashboard and the alerts: every metric and every label that they name is one that kvkeep exposes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from service import assets
from service.document import Document
from tests.support.fake_engine import HEALTHY, PASSING
from tests.support.server import ROOT
from tests.unit.deploy.promql import PromqlError, named
from tests.unit.service.exposition import exposition, families

DEPLOY = ROOT / "config" / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

OF_PROMETHEUS = {"job", "instance"}
"""Labels that a scrape adds."""
UP = {"up": OF_PROMETHEUS}
SEVERITIES = {"page", "ticket"}


def exposed() -> dict[str, set[str]]:
    """The labels of every exposed series by its name, with those that a scrape adds."""
    text = exposition(HEALTHY, loops=PASSING.loops, checks=PASSING.checks)
    labels: dict[str, set[str]] = {}
    for family in families(text).values():
        for sample in family.samples:
            labels.setdefault(sample.name, set(OF_PROMETHEUS)).update(sample.labels)
    return labels | UP


EXPOSED = exposed()


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of both files, with where it stands."""
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']} {target['refId']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]


EXPRESSIONS = [pytest.param(expression, id=place) for place, expression in expressions()]


def wrong(expression: str) -> list[str]:
    """The metrics and labels of an expression that nothing exposes. Raises PromqlError."""
    found = named(expression)
    unknown = [f"there is no metric {metric}" for metric in found.metrics if metric not in EXPOSED]
    unknown += [
        f"{metric} has no label {label}"
        for metric, matched in found.metrics.items()
        for label in matched - EXPOSED.get(metric, matched)
    ]
    labels = set().union(*(EXPOSED.get(metric, set()) for metric in found.metrics))
    return [*unknown, *(f"no metric here has the label {label}" for label in found.groupings - labels)]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_what_is_exposed(expression: str) -> None:
    assert wrong(expression) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("rate(kvkeep_lookups_total[5m])", "there is no metric kvkeep_lookups_total"),
        ('kvkeep_workers{status="ready"}', "kvkeep_workers has no label status"),
        ("sum by (model) (kvkeep_workers)", "no metric here has the label model"),
        ('sum(kvkeep_sessions) / sum(kvkeep_worker{state=~"a|b"})', "there is no metric kvkeep_worker"),
    ],
)
def test_what_is_not_exposed_is_found(expression: str, problem: str) -> None:
    assert wrong(expression) == [problem]


@pytest.mark.parametrize(
    "expression",
    [
        "sum(kvkeep_sessions",
        "kvkeep_sessions)",
        "rate(kvkeep_skipped_stores_total[5m)",
        'kvkeep_workers{state="ready"',
        "kvkeep_workers{state}",
        "summe(kvkeep_sessions)",
        "sum by kvkeep_sessions",
        "kvkeep_sessions # all",
        "1 + 1",
        "",
    ],
)
def test_what_is_no_expression_is_found(expression: str) -> None:
    with pytest.raises(PromqlError):
        wrong(expression)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_only_what_counts_up_is_asked_for_its_rate(expression: str) -> None:
    counted = re.findall(r"(?:rate|increase)\((\w+)", expression)
    assert all(re.search(r"_(total|bucket|count|sum)$", name) for name in counted), counted
    totals = re.findall(r"(?:(\w+)\()?(\w+_total)\b", expression)
    assert all(function in ("rate", "increase") for function, _ in totals), totals


class TestAlerts:
    def test_every_name_is_there_once(self) -> None:
        names = [rule["alert"] for rule in RULES]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"Kvkeep[A-Z]\w+", name) for name in names)

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
    def test_it_says_what_it_means_and_what_to_do(self, rule: dict[str, Any]) -> None:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["labels"]) == {"severity"}
        assert rule["labels"]["severity"] in SEVERITIES
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        assert len(rule["annotations"]["description"].split()) > 10

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
    def test_its_text_names_labels_that_it_has(self, rule: dict[str, Any]) -> None:
        text = " ".join(rule["annotations"].values())
        found = named(rule["expr"])
        kept = set.intersection(*(EXPOSED[metric] for metric in found.metrics)) | (
            set() if "by (" in rule["expr"] else set().union(*(EXPOSED[metric] for metric in found.metrics))
        )
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
    def test_the_operations_and_settings_that_it_sends_people_to_exist(self, rule: dict[str, Any]) -> None:
        text = rule["annotations"]["description"]
        operations = {f"{each.method} {each.template}" for each in Document.load(assets.openapi_path()).operations()}
        assert set(re.findall(r"\b(?:GET|POST|PUT|DELETE) /[\w/-]+", text)) <= operations
        schema = json.loads(assets.schema_path().read_text())
        for section, setting in re.findall(r"\b(server|l1|http|log)\.(\w+)", text):
            assert setting in schema["properties"][section]["properties"]

    @pytest.mark.parametrize(
        "metric",
        [
            "up",
            "kvkeep_engine_ready",
            "kvkeep_check_ok",
            "kvkeep_l1_refused_objects_total",
            "kvkeep_failed_requests_total",
            "kvkeep_dropped_replies_total",
            "kvkeep_hit_tokens_total",
            "kvkeep_lookup_duration_seconds_bucket",
            "kvkeep_loop_beat_age_seconds",
            "kvkeep_loop_restarts_total",
            "kvkeep_loop_exceptions_total",
            "kvkeep_loop_running",
            "kvkeep_l2_up",
            "kvkeep_l2_dropped_saves_total",
            "process_start_time_seconds",
        ],
    )
    def test_what_must_wake_somebody_does(self, metric: str) -> None:
        assert any(metric in named(rule["expr"]).metrics for rule in RULES)


class TestDashboard:
    def test_it_is_one_that_a_current_grafana_reads(self) -> None:
        assert DASHBOARD["schemaVersion"] >= 41
        ids = [panel["id"] for panel in DASHBOARD["panels"]]
        assert len(set(ids)) == len(ids)

    def test_every_panel_asks_the_data_source_that_the_viewer_chooses(self) -> None:
        [choice] = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
        variables = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
        targets = [target for panel in PANELS for target in panel["targets"]]
        for asking in (*PANELS, *targets, *variables, *DASHBOARD["annotations"]["list"]):
            assert asking["datasource"] == {"type": "prometheus", "uid": f"${{{choice['name']}}}"}

    @pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
    def test_a_panel_shows_the_chosen_servers_and_says_what_it_shows(self, panel: dict[str, Any]) -> None:
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            for metric, matched in named(target["expr"]).metrics.items():
                assert matched >= OF_PROMETHEUS, metric

    @pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
    def test_a_legend_names_labels_that_the_series_have(self, panel: dict[str, Any]) -> None:
        for target in panel["targets"]:
            found = named(target["expr"])
            labels = found.groupings or set().union(*(EXPOSED[metric] for metric in found.metrics))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels

    @pytest.mark.parametrize("name", ["job", "instance"])
    def test_the_choices_come_from_metrics_that_exist(self, name: str) -> None:
        [variable] = [each for each in DASHBOARD["templating"]["list"] if each["name"] == name]
        found = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["query"]["query"])
        assert found is not None
        assert found[3] == name
        assert found[3] in EXPOSED[found[1]]

    def test_panels_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in DASHBOARD["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells
