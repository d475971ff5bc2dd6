"""A stand-in for `pulumi-resource-grafana`: writes Grafana's provisioning files.

Below $SANDBOX_GRAFANA_PROVISIONING: `dashboards/<folder-uid>.yaml` (the folder, as a dashboard
provider), `dashboards/<folder-uid>/<uid>.json`, `alerting/<folder-uid>.<group>.yaml`. A Grafana
that is given this folder as its `provisioning` path shows what a real deployment would show.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import yaml
from pulumi.provider.experimental import provider as rpc
from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers import base
from sandbox.providers.base import Existing, Kind, Problems, UserError, Values, known

UID_LIMIT = 40
STATES = {
    "noDataState": ("Alerting", "NoData", "OK", "KeepLast"),
    "execErrState": ("Alerting", "Error", "OK", "KeepLast"),
}
NOTIFICATION = {  # the API's names -> the provisioning files' names
    "activeTimings": "active_time_intervals",
    "contactPoint": "receiver",
    "groupBies": "group_by",
    "groupInterval": "group_interval",
    "groupWait": "group_wait",
    "muteTimings": "mute_time_intervals",
    "repeatInterval": "repeat_interval",
}


def root(*parts: str) -> Path:
    """A path below the provisioning folder."""
    if not (folder := os.environ.get("SANDBOX_GRAFANA_PROVISIONING")):
        raise UserError("SANDBOX_GRAFANA_PROVISIONING is not set: where are the files to go?")
    return Path(folder, *parts)


def write(file: Path, text: str) -> None:
    """Replace a file at once: Grafana polls the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


def folder_file(uid: str) -> Path:
    """The file that stands for a folder."""
    return root("dashboards", f"{uid}.yaml")


def folder_title(uid: str) -> str:
    """The title of a folder that must exist."""
    if not folder_file(uid).exists():
        raise UserError(f"there is no folder with the uid {uid!r}")
    return str(yaml.safe_load(folder_file(uid).read_text())["providers"][0]["folder"])


def dashboards(uid: str = "*") -> Iterator[Path]:
    """The files of a dashboard, in whatever folder."""
    yield from sorted(root("dashboards").glob(f"*/{uid}.json"))


def group_file(folder: str, name: str) -> Path:
    """The file of a rule group."""
    return root("alerting", f"{folder}.{name}.yaml")


def groups(folder: str = "*") -> Iterator[Path]:
    """The files of rule groups, of one folder or of all."""
    yield from sorted(root("alerting").glob(f"{folder}.*.yaml"))


def check_uid(path: str, uid: Any) -> Problems:
    """Grafana's rule for every uid."""
    if uid is None or uid == UNKNOWN:
        return
    if len(uid) > UID_LIMIT:
        yield path, f"has {len(uid)} characters, at most {UID_LIMIT} are allowed"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", uid):
        yield path, f"{uid!r} may have letters, digits, - and _ only"


def seconds(duration: str) -> int:
    """A duration such as `1h30m`, or a ValueError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "": 1}
    parts = re.findall(r"(\d+)([smhdw]?)", duration)
    if not parts or "".join(map("".join, parts)) != duration:
        raise ValueError(f"{duration!r} is no duration")
    return sum(int(number) * units[unit] for number, unit in parts)


class Folder(Kind):
    """grafana.oss.Folder."""

    type = "grafana:oss/folder:Folder"
    replaces = frozenset({"uid"})
    updates = frozenset({"preventDestroyIfNotEmpty", "title"})
    computed = frozenset({"uid", "url"})
    defaults: ClassVar[Values] = {"preventDestroyIfNotEmpty": False}

    def check(self, inputs: Values) -> Problems:
        if not inputs["title"].strip():
            yield "title", "must not be empty"
        yield from check_uid("uid", inputs.get("uid"))

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Write the dashboard provider that makes Grafana create the folder."""
        uid = inputs.get("uid") or uuid4().hex[:14]
        if folder_file(uid).exists():
            raise UserError(f"uid: a folder with the uid {uid!r} exists")
        for file in root("dashboards").glob("*.yaml"):
            if folder_title(file.stem) == inputs["title"]:
                raise UserError(f"title: a folder with the title {inputs['title']!r} exists")
        self._write(uid, inputs["title"])
        return f"1:{uid}", {"uid": uid, "url": f"/dashboards/f/{uid}"}

    @staticmethod
    def _write(uid: str, title: str) -> None:
        path = root("dashboards", uid)
        path.mkdir(parents=True, exist_ok=True)
        provider = {
            "name": uid,
            "orgId": 1,
            "folder": title,
            "folderUid": uid,
            "type": "file",
            "disableDeletion": False,
            "allowUiUpdates": False,
            "options": {"path": str(path.resolve())},
        }
        document = {"apiVersion": 1, "providers": [provider]}
        write(folder_file(uid), yaml.safe_dump(document, sort_keys=False))

    def read(self, it: Existing) -> Values | None:
        """The title may have been changed."""
        uid = it.id.rpartition(":")[2]  # an import gives the uid alone
        if not folder_file(uid).exists():
            return None
        kept = {"preventDestroyIfNotEmpty": it.state.get("preventDestroyIfNotEmpty", False)}
        return {"title": folder_title(uid), "uid": uid, "url": f"/dashboards/f/{uid}", **kept}

    def update(self, it: Existing) -> Values:
        """Another title, also in the rule groups, which name the folder by it."""
        uid = it.state["uid"]
        self._write(uid, it.inputs["title"])
        for file in groups(uid):
            document = yaml.safe_load(file.read_text())
            document["groups"][0]["folder"] = it.inputs["title"]
            write(file, yaml.safe_dump(document, sort_keys=False))
        return {}

    def delete(self, it: Existing) -> None:
        """With all that is in it, unless it is told not to."""
        uid = it.state["uid"]
        inside = [*root("dashboards", uid).glob("*.json"), *groups(uid)]
        if inside and it.state["preventDestroyIfNotEmpty"]:
            names = ", ".join(file.name for file in inside)
            raise UserError(f"folder {uid} is in use by {names}, so it is not deleted")
        for file in inside:
            file.unlink()
        folder_file(uid).unlink()
        root("dashboards", uid).rmdir()


class Dashboard(Kind):
    """grafana.oss.Dashboard."""

    type = "grafana:oss/dashboard:Dashboard"
    updates = frozenset({"configJson", "folder", "message", "overwrite"})
    computed = frozenset({"dashboardId", "uid", "url", "version"})
    volatile = frozenset({"version"})
    defaults: ClassVar[Values] = {"overwrite": False}

    def check(self, inputs: Values) -> Problems:
        text = inputs["configJson"]
        if text == UNKNOWN:
            return
        try:
            model = json.loads(text)
        except ValueError as error:
            yield "configJson", f"is no JSON: {error}"
            return
        if not isinstance(model, dict) or not str(model.get("title") or "").strip():
            yield "configJson", "must be an object with a title"
            return
        yield from check_uid("configJson.uid", model.get("uid"))

    def normal(self, key: str, value: Any) -> Any:
        """Grafana numbers dashboards, versions and panels itself."""
        if key == "folder" and value:
            return str(value).rpartition(":")[2]
        if key != "configJson" or value in (None, UNKNOWN):
            return value
        model = json.loads(value)
        panels = [{**panel, "id": None} for panel in model.get("panels", [])]
        return {**model, "id": None, "version": None, "panels": panels}

    def forces(self, state: Values, inputs: Values) -> set[str]:
        """Another uid is another dashboard."""
        uid = known(inputs["configJson"]) and json.loads(inputs["configJson"]).get("uid")
        return {"configJson"} if uid and uid != state["uid"] else set()

    def create(self, inputs: Values) -> tuple[str, Values]:
        uid = json.loads(inputs["configJson"]).get("uid") or uuid4().hex[:14]
        if not inputs["overwrite"] and (taken := list(dashboards(uid))):
            raise UserError(f"configJson: the uid {uid!r} is taken by {taken[0]}")
        self._write(uid, inputs)
        url = f"/d/{uid}"
        return f"1:{uid}", {"dashboardId": 1, "uid": uid, "url": url, "version": 1}

    def _write(self, uid: str, inputs: Values) -> None:
        folder = self.normal("folder", inputs.get("folder")) or "general"
        if folder != "general":
            folder_title(folder)
        model = {**json.loads(inputs["configJson"]), "uid": uid}
        for old in dashboards(uid):
            old.unlink()
        write(root("dashboards", folder, f"{uid}.json"), json.dumps(model, indent=2) + "\n")

    def read(self, it: Existing) -> Values | None:
        uid = it.id.partition(":")[2]
        if not (files := list(dashboards(uid))):
            return None
        return {"configJson": files[0].read_text(), "folder": files[0].parent.name, "uid": uid}

    def update(self, it: Existing) -> Values:
        self._write(it.state["uid"], it.inputs)
        return {"version": it.state.get("version", 0) + 1}

    def delete(self, it: Existing) -> None:
        for file in dashboards(it.state["uid"]):
            file.unlink()


class RuleGroup(Kind):
    """grafana.alerting.RuleGroup."""

    type = "grafana:alerting/ruleGroup:RuleGroup"
    replaces = frozenset({"folderUid", "name"})
    updates = frozenset({"disableProvenance", "intervalSeconds", "rules"})
    defaults: ClassVar[Values] = {"disableProvenance": False}
    autoname = "name"

    def check(self, inputs: Values) -> Problems:
        """What Grafana would refuse only after two minutes of retries."""
        interval = inputs["intervalSeconds"]
        if interval != UNKNOWN and (interval <= 0 or interval % 10):
            yield "intervalSeconds", f"must be a multiple of 10, not {interval}"
        if not re.fullmatch(r"[^/\\]{1,190}", inputs["name"]):
            yield "name", "must have 1 to 190 characters, no slash"
        if not inputs["rules"]:
            yield "rules", "must not be empty"
        for field in ("uid", "name"):
            values = [rule[field] for rule in inputs["rules"] if rule.get(field) is not None]
            for twice in sorted({one for one in values if values.count(one) > 1} - {UNKNOWN}):
                yield "rules", f"have the {field} {twice!r} twice"
        for index, rule in enumerate(inputs["rules"]):
            for path, problem in self._check_rule(rule):
                yield f"rules[{index}].{path}", problem

    @staticmethod
    def _check_rule(rule: Values) -> Problems:
        yield from check_uid("uid", rule.get("uid"))
        if not 0 < len(rule["name"]) <= 190:
            yield "name", "must have 1 to 190 characters"
        names = [query["refId"] for query in rule["datas"]]
        if not rule.get("record") and rule.get("condition") not in (*names, UNKNOWN):
            yield "condition", f"{rule.get('condition')!r} is none of {', '.join(names)}"
        for key, allowed in STATES.items():
            if rule.get(key, allowed[0]) not in (*allowed, UNKNOWN):
                yield key, f"{rule[key]!r} is none of {', '.join(allowed)}"
        for key in ("for", "keepFiringFor"):
            try:
                seconds(rule.get(key, "0") if known(rule.get(key)) else "0")
            except ValueError as error:
                yield key, str(error)
        if rule.get("record"):
            yield "record", "is not modelled by the sandbox"
        if not (rule.get("notificationSettings") or {"contactPoint": "-"}).get("contactPoint"):
            yield "notificationSettings.contactPoint", "is required"
        for number, query in enumerate(rule["datas"]):
            try:
                if known(query["model"]) and not isinstance(json.loads(query["model"]), dict):
                    raise ValueError("no object")
            except ValueError:
                yield f"datas[{number}].model", "is no JSON object"

    def normal(self, key: str, value: Any) -> Any:
        """Rules in the words of the provisioning files, durations as Grafana writes them."""
        if key != "rules" or value is None:
            return value
        return [self._to_file(rule) if known(rule) else rule for rule in value]

    @staticmethod
    def _to_file(rule: Values) -> Values:
        written = {
            "uid": rule.get("uid"),
            "title": rule["name"],
            "condition": rule.get("condition"),
            "data": [
                {
                    "refId": query["refId"],
                    "queryType": query.get("queryType", ""),
                    "relativeTimeRange": query["relativeTimeRange"],
                    "datasourceUid": query["datasourceUid"],
                    "model": json.loads(query["model"]),
                }
                for query in rule["datas"]
            ],
            "noDataState": rule.get("noDataState", "NoData"),
            "execErrState": rule.get("execErrState", "Alerting"),
            "for": f"{seconds(rule.get('for', '0'))}s",
            "keep_firing_for": rule.get("keepFiringFor") and f"{seconds(rule['keepFiringFor'])}s",
            "missing_series_evals_to_resolve": rule.get("missingSeriesEvalsToResolve"),
            "annotations": rule.get("annotations"),
            "labels": rule.get("labels"),
            "isPaused": rule.get("isPaused", False),
            "notification_settings": {
                NOTIFICATION[key]: value
                for key, value in (rule.get("notificationSettings") or {}).items()
                if key in NOTIFICATION
            },
        }
        return {key: value for key, value in written.items() if value not in (None, {})}

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Write it; rules without a uid get one."""
        folder, name = inputs["folderUid"], inputs["name"]
        if (file := group_file(folder, name)).exists():
            raise UserError(f"name: the folder {folder} has a group {name!r} already")
        return f"1:{folder}:{name}", self._write(file, inputs)

    def _write(self, file: Path, inputs: Values) -> Values:
        folder = folder_title(inputs["folderUid"])
        taken = {
            rule["uid"]: other
            for other in groups()
            if other != file
            for rule in yaml.safe_load(other.read_text())["groups"][0]["rules"]
        }
        rules = [{**rule, "uid": rule.get("uid") or uuid4().hex[:14]} for rule in inputs["rules"]]
        for rule in rules:
            if rule["uid"] in taken:
                raise UserError(f"rules: the uid {rule['uid']!r} is taken by {taken[rule['uid']]}")
        group = {
            "orgId": 1,
            "name": inputs["name"],
            "folder": folder,
            "interval": f"{inputs['intervalSeconds']}s",
            "rules": self.normal("rules", rules),
        }
        document = {"apiVersion": 1, "groups": [group]}
        write(file, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
        return {}

    def read(self, it: Existing) -> Values | None:
        """Rules that somebody edited are not seen: the next change puts them back."""
        _, folder, name = it.id.split(":", 2)
        if not (file := group_file(folder, name)).exists():
            return None
        group = yaml.safe_load(file.read_text())["groups"][0]
        return {
            "folderUid": folder,
            "intervalSeconds": seconds(group["interval"]),
            "name": name,
        }

    def update(self, it: Existing) -> Values:
        return self._write(group_file(it.state["folderUid"], it.state["name"]), it.inputs)

    def delete(self, it: Existing) -> None:
        group_file(it.state["folderUid"], it.state["name"]).unlink(missing_ok=True)


class Grafana(base.Provider):
    """The provider; address and credentials have to be there, and are not used."""

    package = "grafana"
    settings = frozenset({"auth", "url"})

    def __init__(self) -> None:
        super().__init__()
        kinds: list[Kind] = [Folder(), Dashboard(), RuleGroup()]
        self.kinds = {kind.type: kind for kind in kinds}

    def _given(self, key: str) -> str:
        return str(self.config.get(key) or os.environ.get(f"GRAFANA_{key.upper()}") or "")

    async def configure(self, request: rpc.ConfigureRequest) -> rpc.ConfigureResponse:
        """The URL is looked at in a preview too."""
        answer = await super().configure(request)
        url = self._given("url")
        if url and not re.match("https?://.", url):
            raise UserError(f"grafana:url: {url!r} must be a URL with http:// or https://")
        return answer

    async def create(self, request: rpc.CreateRequest) -> rpc.CreateResponse:
        self._need_client(preview=request.preview)
        return await super().create(request)

    async def read(self, request: rpc.ReadRequest) -> rpc.ReadResponse:
        self._need_client()
        return await super().read(request)

    async def update(self, request: rpc.UpdateRequest) -> rpc.UpdateResponse:
        self._need_client(preview=request.preview)
        return await super().update(request)

    async def delete(self, request: rpc.DeleteRequest) -> None:
        self._need_client()
        await super().delete(request)

    def _need_client(self, *, preview: bool = False) -> None:
        """Without a URL or credentials a preview is clean, and all else fails."""
        if not preview and not (self._given("url") and self._given("auth")):
            raise UserError(
                "the Grafana client is required. Set the auth and url provider attributes"
            )


if __name__ == "__main__":
    base.main(Grafana())
