"""Compose, Prometheus, rules and dashboard read together, without Docker and without a network."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from shared.metrics import ApiMetrics, WorkerMetrics, names
from shared.settings import VARIABLES, load

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("compose.yaml", "compose.coolify.yaml")
OURS = ("migrate", "api", "worker")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(?::([-+])([^}]*))?\}")
_METRIC = re.compile(r"\bdrumbeat_[a-z_]+")


def rendered(file: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a compose file as Compose would fill it in."""
    given = environ or {}

    def value(match: re.Match[str]) -> str:
        name, sign, word = match.groups()
        if sign == "+":
            return word if given.get(name) else ""
        return given.get(name) or word or ("x" * 64 if name.startswith("SERVICE_") else "")

    def filled(node: Any) -> Any:
        if isinstance(node, str):
            return _VARIABLE.sub(value, node)
        if isinstance(node, list):
            return [filled(part) for part in node]
        if isinstance(node, dict):
            return {key: filled(part) for key, part in node.items()}
        return node

    loaded: dict[str, Any] = filled(yaml.safe_load((DEPLOY / file).read_text()))
    return loaded


def scrapes() -> dict[str, Any]:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    return {
        name: (scrape, found)
        for scrape in config["scrape_configs"]
        for found in scrape["dns_sd_configs"]
        for name in found["names"]
    }


def test_prometheus_finds_every_replica_by_dns_and_by_no_fixed_name() -> None:
    services = rendered("compose.yaml")["services"]
    found = scrapes()
    assert set(found) == {"api", "worker"} <= set(services)
    for name, (scrape, discovery) in found.items():
        environment = services[name]["environment"]
        assert discovery["type"] == "A"
        assert str(discovery["port"]) == environment["METRICS_PORT"]
        assert environment["METRICS_HOST"] == "0.0.0.0"  # noqa: S104 - a container's network
        assert "static_configs" not in scrape
        assert "container_name" not in services[name], "it would forbid a second replica"
        assert not any("9464" in port for port in services[name].get("ports", []))


def test_both_sides_of_a_scrape_hold_the_same_token() -> None:
    compose = rendered("compose.yaml")
    services, secrets = compose["services"], compose["secrets"]
    for name, (scrape, _) in scrapes().items():
        asked = services[name]["environment"]["METRICS_TOKEN_FILE"]
        shown = scrape["authorization"]["credentials_file"]
        assert asked == shown == "/run/secrets/metrics_token"
        assert "metrics_token" in services[name]["secrets"]
    assert "metrics_token" in services["prometheus"]["secrets"]
    assert "metrics_token" in secrets


@pytest.mark.parametrize("file", FILES)
def test_our_services_start_with_these_variables(file: str) -> None:
    services = rendered(file)["services"]
    for name in OURS:
        environment = services[name]["environment"]
        assert {key.removesuffix("_FILE") for key in environment} <= set(VARIABLES)
        plain = {key: value for key, value in environment.items() if not key.endswith("_FILE")}
        assert load(plain, None).warnings == ()


@pytest.mark.parametrize("file", FILES)
def test_two_workers_run_by_default_and_everything_is_confined(file: str) -> None:
    services = rendered(file)["services"]
    assert services["worker"]["scale"] == 2
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for name in ("api", "worker"):
        assert services[name]["stop_grace_period"] == "45s"


def test_the_senders_token_is_asked_for_only_with_its_number() -> None:
    without = rendered("compose.yaml")["services"]["worker"]["environment"]
    given = rendered("compose.yaml", {"WHATSAPP_PHONE_NUMBER_ID": "1"})
    within = given["services"]["worker"]["environment"]
    variable = "WHATSAPP_ACCESS_TOKEN_FILE"
    assert (without[variable], within[variable]) == ("", "/run/secrets/whatsapp_access_token")


@pytest.mark.parametrize("file", FILES)
def test_receipts_can_be_switched_on(file: str) -> None:
    environment = rendered(file)["services"]["api"]["environment"]
    given = {name.removesuffix("_FILE") for name in environment}
    assert {"WHATSAPP_APP_SECRET", "WHATSAPP_VERIFY_TOKEN"} <= given


def test_every_secret_and_volume_that_is_used_is_declared() -> None:
    for file in FILES:
        compose = rendered(file)
        for service in compose["services"].values():
            assert set(service.get("secrets", [])) <= set(compose.get("secrets", {}))
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("./"):
                    assert (DEPLOY / source).exists()
                else:
                    assert source in compose["volumes"]
            assert set(service.get("depends_on", [])) <= set(compose["services"])


def test_published_ports_are_for_this_machine_only_and_coolify_publishes_none() -> None:
    services = rendered("compose.yaml")["services"].values()
    assert all(p.startswith("127.0.0.1:") for each in services for p in each.get("ports", []))
    coolify = rendered("compose.coolify.yaml")
    assert not any("ports" in service for service in coolify["services"].values())
    assert "secrets" not in coolify
    assert coolify["services"]["api"]["expose"] == ["3000"]


def test_one_command_makes_every_secret_and_keeps_those_there_are(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_text((DEPLOY / "secrets.sh").read_text())
    (tmp_path / "users.acl").write_text((DEPLOY / "users.acl").read_text())
    for _ in range(2):
        subprocess.run(["/bin/sh", str(script)], check=True, capture_output=True)
        made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
        assert set(made) == set(rendered("compose.yaml")["secrets"])
        assert made["postgres_password"] in made["database_url"]
        assert made["valkey_password"] in made["redis_url"]
        assert made["valkey_acl"].startswith(f"user default on >{made['valkey_password']} ")
        assert len(made["valkey_acl"].splitlines()) == 1
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    environ = {
        f"{name}_FILE": str(tmp_path / "secrets" / name.lower())
        for name in (
            "REDIS_URL", "DATABASE_URL", "BULK_SECRET_KEY", "METRICS_TOKEN",
            "WHATSAPP_APP_SECRET", "WHATSAPP_VERIFY_TOKEN",
        )
    }  # fmt: skip
    made_of_them = load(environ, None)
    assert made_of_them.metrics_token is not None
    # Empty until Meta's is put there: webhooks are off, and nothing is amiss.
    assert made_of_them.whatsapp_app_secret == ()


def declared() -> frozenset[str]:
    return names(WorkerMetrics(CollectorRegistry()), ApiMetrics(CollectorRegistry()))


def test_rules_speak_of_our_metrics_only() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert all(rule["alert"].startswith("Drumbeat") for rule in rules)
    assert all(rule["labels"]["severity"] in {"critical", "warning"} for rule in rules)
    assert {name for rule in rules for name in _METRIC.findall(rule["expr"])} <= declared()


def test_panels_speak_of_our_metrics_only_and_say_unit_and_meaning() -> None:
    board = json.loads((DEPLOY / "grafana/dashboards/drumbeat.json").read_text())
    assert board["uid"] == "drumbeat"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        used = {name for target in panel["targets"] for name in _METRIC.findall(target["expr"])}
        assert used, panel["title"]
        assert used <= declared(), panel["title"]


def test_figures_of_the_whole_fleet_are_never_summed_over_processes() -> None:
    fleet = {
        family.name
        for family in ApiMetrics(CollectorRegistry()).registry.collect()
        if family.documentation.startswith("Fleet:")
    }
    board = json.loads((DEPLOY / "grafana/dashboards/drumbeat.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            for name in fleet & set(_METRIC.findall(target["expr"])):
                assert re.search(rf"max(?: by \(\w+\))? ?\({name}\b", target["expr"]), target


def test_the_image_is_unprivileged_and_listens_for_its_network() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in ("USER 10001:10001", "METRICS_HOST=0.0.0.0", 'ENTRYPOINT ["drumbeat"]'):
        assert line in text
