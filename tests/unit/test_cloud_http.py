"""The real client against a small HTTP stand-in: ways in, retries, microversions, refusals."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.http_cloud import SECRET, Pauses, Reply, StandIn, clouds_yaml, connect, password
from volferry.cloud import Cloud
from volferry.cloud.retries import retry_after_s
from volferry.errors import Doubt, NotFound, Retry, Stop, Usage, VolferryError
from volferry.model import MARK, CloudFacts

VOLUME_ID = "064871a5-0c3d-4d66-a1d0-d948556f9e9d"
SERVER_ID = "58074d33-df74-46dd-909c-e2cde4b31fb5"
VOLUME = {"id": VOLUME_ID, "name": "data", "size": 1, "status": "available", "metadata": {}}
SERVER = {"id": SERVER_ID, "name": "web-03", "status": "ACTIVE", "image": ""}


@pytest.fixture
def cloud_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    for name in [n for n in os.environ if n.startswith("OS_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


def all_of(error: VolferryError) -> str:
    return "\n".join((error.what, error.data, error.hint, str(error)))


# ---- ways in -------------------------------------------------------------------------------------


async def test_connecting_authenticates_and_finds_both_services(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api)
    cloud_api.says("GET", f"/volume/v3/volumes/{VOLUME_ID}", Reply(body={"volume": VOLUME}))
    assert (await cloud.volume(VOLUME_ID)).name == "data"
    sent = cloud_api.sent[-1]
    assert sent.headers["OpenStack-API-Version"] == "volume 3.71"
    assert sent.headers["User-Agent"].startswith("volferry")
    assert cloud.api_calls == cloud_api.all_requests
    await cloud.close()


async def test_os_variables_and_os_cloud_are_heeded(
    cloud_api: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = clouds_yaml(tmp_path, one=password("http://127.0.0.1:9"), two=password(cloud_api.url))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", file)
    monkeypatch.setenv("OS_CLOUD", "two")
    await (await Cloud.connect()).close()
    monkeypatch.delenv("OS_CLOUD")
    Path(file).unlink()
    for name, value in password(cloud_api.url)["auth"].items():
        monkeypatch.setenv(f"OS_{name.upper()}", value)
    await (await Cloud.connect()).close()


async def test_no_cloud_at_all_says_where_to_put_one(
    cloud_api: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK decides at its import where it looks, so the folder of this test is too late.
    monkeypatch.setattr("openstack.config.loader.CONFIG_FILES", [])
    with pytest.raises(Usage) as wrong:
        await Cloud.connect()
    assert "no cloud is configured" in wrong.value.what
    assert "clouds.yaml" in wrong.value.hint


async def test_an_unknown_cloud_is_answered_with_those_that_exist(
    cloud_api: StandIn, tmp_path: Path
) -> None:
    file = clouds_yaml(tmp_path, alpha=password(cloud_api.url), beta=password(cloud_api.url))
    for asked in ("gamma", ""):
        with pytest.raises(Usage) as wrong:
            await Cloud.connect(asked, config_file=file)
        assert "alpha, beta" in wrong.value.what
    with pytest.raises(Usage):
        await Cloud.connect("alpha", config_file=str(tmp_path / "nowhere.yaml"))


async def test_incomplete_credentials_name_what_is_missing(tmp_path: Path) -> None:
    half = {"auth": {"username": "demo", "password": SECRET}}
    with pytest.raises(Usage) as wrong:
        await Cloud.connect("half", config_file=clouds_yaml(tmp_path, half=half))
    assert "auth_url" in wrong.value.what
    assert SECRET not in all_of(wrong.value)


async def test_refused_credentials_do_not_show_the_secret(
    cloud_api: StandIn, tmp_path: Path
) -> None:
    file = clouds_yaml(tmp_path, here=password(cloud_api.url, "hunter2-is-secret"))
    with pytest.raises(Usage) as wrong:
        await Cloud.connect("here", config_file=file)
    assert "refused the credentials (HTTP 401)" in wrong.value.what
    assert "hunter2" not in all_of(wrong.value)
    assert SECRET not in all_of(wrong.value)


async def test_a_region_without_block_storage_is_answered_with_those_that_have_it(
    cloud_api: StandIn, tmp_path: Path
) -> None:
    cloud_api.regions = ["North", "South"]
    entry = password(cloud_api.url)
    del entry["region_name"]
    file = clouds_yaml(tmp_path, here=entry)
    with pytest.raises(Usage) as wrong:
        await Cloud.connect("here", "East", config_file=file)
    assert "'East'" in wrong.value.what
    assert "North, South" in wrong.value.what
    with pytest.raises(Usage) as wrong:
        await Cloud.connect("here", config_file=file)
    assert "none was chosen: North, South" in wrong.value.what
    cloud = await Cloud.connect("here", "South", config_file=file)
    assert cloud._wire.region == "South"
    await cloud.close()


async def test_credentials_without_a_project_are_refused(cloud_api: StandIn) -> None:
    cloud_api.scoped = False
    with pytest.raises(Usage) as wrong:
        await connect(cloud_api)
    assert "no project" in wrong.value.what


async def test_what_is_not_keystone_is_told_so(cloud_api: StandIn) -> None:
    cloud_api.is_keystone = False
    with pytest.raises(Usage) as wrong:
        await connect(cloud_api)
    assert "auth_url" in wrong.value.hint


async def test_a_refused_connection_is_worth_another_try(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    entry = password(f"http://user:{SECRET.split(maxsplit=1)[0]}@127.0.0.1:{port}")
    with pytest.raises(Retry) as lost:
        await Cloud.connect("here", config_file=clouds_yaml(tmp_path, here=entry))
    assert "Connection refused" in lost.value.what
    assert SECRET.split(maxsplit=1)[0] not in all_of(lost.value)


async def test_a_name_that_does_not_resolve_is_worth_another_try(tmp_path: Path) -> None:
    entry = password("http://keystone.invalid:5000")
    with pytest.raises(Retry) as lost:
        await Cloud.connect("here", config_file=clouds_yaml(tmp_path, here=entry))
    assert "cannot be reached" in lost.value.what


async def test_tls_that_cannot_be_trusted_stops(cloud_api: StandIn, tmp_path: Path) -> None:
    entry = password(cloud_api.url.replace("http:", "https:"))
    with pytest.raises(Stop) as stop:
        await Cloud.connect("here", config_file=clouds_yaml(tmp_path, here=entry))
    assert "cacert" in stop.value.hint


# ---- retries -------------------------------------------------------------------------------------


async def test_reading_goes_on_through_503_cuts_and_409(cloud_api: StandIn) -> None:
    pauses = Pauses()
    cloud = await connect(cloud_api, pauses)
    html = "<html><style>b{}</style><h1>502 Bad Gateway</h1></html>"
    cloud_api.says(
        "GET",
        f"/volume/v3/volumes/{VOLUME_ID}",
        Reply(503),
        Reply(cut=True),
        Reply(502, html),
        Reply(200, html),
        Reply(body={"volume": VOLUME}),
    )
    with pytest.raises(Retry) as not_json:
        await cloud.volume(VOLUME_ID)
    assert "without 'volume'" in not_json.value.what
    assert (await cloud.volume(VOLUME_ID)).id == VOLUME_ID
    assert len(pauses.slept) == 3
    await cloud.close()


async def test_retry_after_is_honoured_and_patience_ends(cloud_api: StandIn) -> None:
    pauses = Pauses(budget_s=20)
    cloud = await connect(cloud_api, pauses)
    path = f"/volume/v3/volumes/{VOLUME_ID}"
    cloud_api.says(
        "GET", path, Reply(429, headers={"Retry-After": "7"}), Reply(body={"volume": VOLUME})
    )
    await cloud.volume(VOLUME_ID)
    assert 7 <= pauses.slept[0] < 8
    cloud_api.says("GET", path, Reply(429, headers={"Retry-After": "600"}))
    with pytest.raises(Retry) as busy:
        await cloud.volume(VOLUME_ID)
    assert "asks to wait 600 s" in busy.value.what
    assert len(pauses.slept) == 1
    cloud_api.says("GET", path, Reply(503))
    with pytest.raises(Retry):
        await cloud.volume(VOLUME_ID)
    assert pauses.clock <= 28
    await cloud.close()


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_s({}) is None
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({"Retry-After": "3"}) == 3
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


class Snapshots:
    """The snapshots of the stand-in, so that an effect outlives its lost answer."""

    def __init__(self, api: StandIn) -> None:
        self.made: list[dict[str, Any]] = []
        self.api = api
        api.says("GET", "/volume/v3/snapshots/detail", Reply(body={"snapshots": self.made}))

    def make(self, body: Any) -> None:
        new = {**body["snapshot"], "id": f"snap-{len(self.made)}", "status": "creating"}
        self.made.append(new)


async def test_a_lost_answer_makes_no_second_snapshot(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    snapshots = Snapshots(cloud_api)
    cloud_api.says("POST", "/volume/v3/snapshots", Reply(cut=True, effect=snapshots.make))
    made = await cloud.create_snapshot(VOLUME_ID, "s", "tr-1")
    assert made.id == "snap-0"
    assert len(cloud_api.posts("/volume/v3/snapshots")) == 1
    await cloud.close()


@pytest.mark.parametrize("body", [None, "<html>done</html>", {"ok": True}])
async def test_a_create_that_something_else_answered_makes_no_second_one(
    cloud_api: StandIn, body: Any
) -> None:
    """It may have been passed on, and the list may show it only later."""
    cloud = await connect(cloud_api, Pauses())
    snapshots = Snapshots(cloud_api)
    unseen = Reply(body={"snapshots": []})
    seen = Reply(body={"snapshots": snapshots.made})
    cloud_api.says("GET", "/volume/v3/snapshots/detail", unseen, unseen, unseen, seen)
    answered = Reply(200, body, effect=snapshots.make)
    cloud_api.says("POST", "/volume/v3/snapshots", answered)
    assert (await cloud.create_snapshot(VOLUME_ID, "s", "tr-1")).id == "snap-0"
    assert len(cloud_api.posts("/volume/v3/snapshots")) == 1
    await cloud.close()


async def test_an_answer_that_drips_is_not_waited_for_without_end(cloud_api: StandIn) -> None:
    """Each byte of it comes in time."""
    cloud = await connect(cloud_api, Pauses(budget_s=0.5))
    path = f"/volume/v3/volumes/{VOLUME_ID}"
    cloud_api.says("GET", path, Reply(body={"volume": VOLUME}, drips_s=0.2))
    began = time.monotonic()
    with pytest.raises(Retry, match=r"no whole answer .* within 1 s.*\(--answer-timeout\)"):
        await cloud.volume(VOLUME_ID)
    assert time.monotonic() - began < 5
    await cloud.close()


@pytest.mark.parametrize("lost", [Reply(cut=True), Reply(500), Reply(504), Reply(429)])
async def test_a_lost_request_is_sent_again(cloud_api: StandIn, lost: Reply) -> None:
    cloud = await connect(cloud_api, Pauses())
    snapshots = Snapshots(cloud_api)
    accepted = Reply(202, {"snapshot": {"id": "snap-0", "status": "creating"}})
    accepted.effect = snapshots.make
    cloud_api.says("POST", "/volume/v3/snapshots", lost, accepted)
    assert (await cloud.create_snapshot(VOLUME_ID, "s", "tr-1")).id == "snap-0"
    assert len(cloud_api.posts("/volume/v3/snapshots")) == 2
    await cloud.close()


async def test_a_request_that_was_only_slow_ends_in_a_doubt(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    snapshots = Snapshots(cloud_api)
    accepted = Reply(202, {"snapshot": {"id": "snap-1", "status": "creating"}})

    def both(body: Any) -> None:  # the first one shows up only now
        snapshots.make(body)
        snapshots.make(body)

    accepted.effect = both
    cloud_api.says("POST", "/volume/v3/snapshots", Reply(cut=True), accepted)
    with pytest.raises(Doubt) as doubt:
        await cloud.create_snapshot(VOLUME_ID, "s", "tr-1")
    assert "snap-0" in doubt.value.data
    assert "snap-1" in doubt.value.data
    await cloud.close()


async def test_an_expired_token_is_replaced(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    cloud_api.says("GET", f"/volume/v3/volumes/{VOLUME_ID}", Reply(body={"volume": VOLUME}))
    cloud_api.refused_tokens.add("token-1")
    assert (await cloud.volume(VOLUME_ID)).id == VOLUME_ID
    assert cloud_api.tokens == 2
    cloud_api.refused_tokens |= {"token-2", "token-3"}
    with pytest.raises(VolferryError) as refused:
        await cloud.volume(VOLUME_ID)
    assert "401" in refused.value.what
    await cloud.close()


async def test_a_token_that_cannot_be_replaced_at_once_is_asked_for_again(
    cloud_api: StandIn,
) -> None:
    """The request that it was for was refused as a whole; it is sent once, whatever it makes."""
    cloud = await connect(cloud_api, Pauses())
    snapshots = Snapshots(cloud_api)
    accepted = Reply(202, {"snapshot": {"id": "snap-0", "status": "creating"}})
    accepted.effect = snapshots.make
    cloud_api.says("POST", "/volume/v3/snapshots", accepted)
    cloud_api.refused_tokens.add("token-1")
    cloud_api.keystone_says = [Reply(503), Reply(429), Reply(500)]
    assert (await cloud.create_snapshot(VOLUME_ID, "s", "tr-1")).id == "snap-0"
    assert cloud_api.keystone_says == [] and len(snapshots.made) == 1
    await cloud.close()


async def test_a_busy_server_is_asked_again_and_a_locked_one_is_not(cloud_api: StandIn) -> None:
    pauses = Pauses()
    cloud = await connect(cloud_api, pauses)
    path = f"/compute/v2.1/servers/{SERVER_ID}/os-volume_attachments"
    cloud_api.says("GET", f"/volume/v3/volumes/{VOLUME_ID}", Reply(body={"volume": VOLUME}))
    cloud_api.says("GET", path, Reply(body={"volumeAttachments": []}))

    def conflict(message: str) -> Reply:
        return Reply(409, {"conflictingRequest": {"code": 409, "message": message}})

    busy = conflict("Cannot 'attach_volume' instance while it is in task_state rebooting")
    cloud_api.says("POST", path, busy, busy, Reply(202))
    await cloud.attach(SERVER_ID, VOLUME_ID)
    assert len(cloud_api.posts(path)) == 3
    cloud_api.says("POST", path, conflict(f"Instance {SERVER_ID} is locked"))
    with pytest.raises(Stop) as stop:
        await cloud.attach(SERVER_ID, VOLUME_ID)
    assert "is locked" in stop.value.what
    await cloud.close()


async def test_a_lost_detach_is_not_sent_to_a_volume_that_is_leaving(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    path = f"/compute/v2.1/servers/{SERVER_ID}/os-volume_attachments"
    attached = {"volumeAttachments": [{"volumeId": VOLUME_ID, "device": "/dev/vdb"}]}
    cloud_api.says("GET", path, Reply(body=attached))
    cloud_api.says(
        "GET",
        f"/volume/v3/volumes/{VOLUME_ID}",
        Reply(body={"volume": {**VOLUME, "status": "in-use"}}),
        Reply(body={"volume": {**VOLUME, "status": "detaching"}}),
    )
    cloud_api.says("DELETE", f"{path}/{VOLUME_ID}", Reply(cut=True))
    await cloud.detach(SERVER_ID, VOLUME_ID)
    assert [s.method for s in cloud_api.sent].count("DELETE") == 1
    await cloud.close()


# ---- refusals ------------------------------------------------------------------------------------

QUOTA = {"gigabytes": {"limit": 10, "in_use": 9, "reserved": 0}, "volumes": {"limit": -1}}


async def test_an_exceeded_quota_stops_with_its_figures(cloud_api: StandIn) -> None:
    pauses = Pauses()
    cloud = await connect(cloud_api, pauses)
    message = "VolumeSizeExceedsAvailableQuota: Requested volume exceeds allowed gigabytes quota."
    over = {"overLimit": {"code": 413, "message": message, "retryAfter": "0"}}
    cloud_api.says("POST", "/volume/v3/volumes", Reply(413, over, {"Retry-After": "0"}))
    cloud_api.says("GET", "/volume/v3/volumes/detail", Reply(body={"volumes": []}))
    cloud_api.says("GET", "/volume/v3/os-quota-sets/p1", Reply(body={"quota_set": QUOTA}))
    with pytest.raises(Stop) as stop:
        await cloud.create_volume("t", size_gib=5, type="fast", mark="tr-1", source_id="s")
    assert "exceeds allowed gigabytes quota" in stop.value.what
    assert "gigabytes: 9 of 10 used" in stop.value.data
    assert pauses.slept == []
    await cloud.close()


async def test_a_rate_limit_of_old_is_no_quota(cloud_api: StandIn) -> None:
    pauses = Pauses()
    cloud = await connect(cloud_api, pauses)
    limited = {"overLimitFault": {"code": 413, "message": "This request was rate-limited."}}
    cloud_api.says(
        "GET",
        f"/volume/v3/volumes/{VOLUME_ID}",
        Reply(413, limited, {"Retry-After": "2"}),
        Reply(body={"volume": VOLUME}),
    )
    await cloud.volume(VOLUME_ID)
    assert pauses.slept[0] >= 2
    await cloud.close()


async def facts_from(api: StandIn, cloud: Cloud, quota: Reply) -> CloudFacts:
    api.says("GET", f"/compute/v2.1/servers/{SERVER_ID}", Reply(body={"server": SERVER}))
    api.says("GET", f"/volume/v3/volumes/{VOLUME_ID}", Reply(body={"volume": VOLUME}))
    path = f"/compute/v2.1/servers/{SERVER_ID}/os-volume_attachments"
    lines = [{"volumeId": "root", "device": "/dev/vda"}, {"id": VOLUME_ID, "device": "/dev/vdb"}]
    api.says("GET", path, Reply(body={"volumeAttachments": lines}))
    api.says("GET", "/volume/v3/types", Reply(body={"volume_types": [{"id": "1", "name": "fast"}]}))
    api.says("GET", "/volume/v3/os-quota-sets/p1", quota)
    return await cloud.facts(SERVER_ID, [VOLUME_ID])


async def test_facts_do_without_a_quota_that_policy_hides(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    forbidden = {"forbidden": {"code": 403, "message": "Policy doesn't allow quotas:show"}}
    facts = await facts_from(cloud_api, cloud, Reply(403, forbidden))
    assert facts.quota is None
    assert "Policy doesn't allow" in facts.quota_error
    assert facts.server.root_device == "/dev/vda"
    facts = await facts_from(cloud_api, cloud, Reply(body={"quota_set": QUOTA}))
    assert facts.quota is not None
    assert facts.quota.limits == {"gigabytes": 10, "volumes": -1}
    await cloud.close()


async def test_lists_are_read_to_their_last_page(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    ours = {**VOLUME, "id": "ours", "metadata": {MARK: "tr-1"}}
    more = [{"rel": "next", "href": "…"}]
    cloud_api.says(
        "GET",
        "/volume/v3/volumes/detail",
        Reply(body={"volumes": [VOLUME], "volumes_links": more}),
        Reply(body={"volumes": [ours]}),
    )
    found = await cloud.find_volume("tr-1")
    assert found is not None
    assert found.id == "ours"
    await cloud.close()


async def test_the_newest_user_message_explains_a_failure(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    failed = {**VOLUME, "status": "error"}
    cloud_api.says("GET", f"/volume/v3/volumes/{VOLUME_ID}", Reply(body={"volume": failed}))

    def message(when: str, text: str, about: str = VOLUME_ID) -> dict[str, str]:
        return {"created_at": when, "user_message": text, "resource_uuid": about}

    messages = [
        message("2026-01-02T00:00:00", "create volume:no room"),
        message("2026-01-01T00:00:00", "create volume:old"),
        message("2026-01-03T00:00:00", "create volume:of another", "x"),
    ]
    cloud_api.says("GET", "/volume/v3/messages", Reply(body={"messages": messages}))
    with pytest.raises(Stop) as stop:
        await cloud.wait_volume(VOLUME_ID, deadline_s=5)
    assert "no room" in stop.value.data
    assert "old" not in stop.value.data
    cloud_api.says("GET", "/volume/v3/messages", Reply(404))
    with pytest.raises(Stop) as stop:
        await cloud.wait_volume(VOLUME_ID, deadline_s=5)
    assert "'error'" in stop.value.what
    await cloud.close()


async def test_a_strange_id_cannot_leave_its_path(cloud_api: StandIn) -> None:
    cloud = await connect(cloud_api, Pauses())
    with pytest.raises(NotFound):
        await cloud.volume("../servers/x?y")
    assert cloud_api.sent[-1].path == "/volume/v3/volumes/..%2Fservers%2Fx%3Fy"
    await cloud.close()


# ---- microversions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compute", "volume", "sent_compute", "sent_volume", "force", "flag"),
    [
        (("2.1", "2.53"), ("3.0", "3.44"), "2.53", "3.44", True, False),
        (("2.1", "2.79"), ("3.0", "3.59"), "2.79", "3.59", True, True),
        (("2.1", "2.96"), ("3.0", "3.71"), "2.96", "3.71", False, True),
        (("2.1", "2.104"), ("3.0", "3.99"), "2.101", "3.71", False, True),
        (("2.103", "2.120"), ("3.80", "3.99"), "2.103", "3.80", False, True),
    ],
)
async def test_microversions_are_negotiated(
    cloud_api: StandIn,
    compute: tuple[str, str],
    volume: tuple[str, str],
    sent_compute: str,
    sent_volume: str,
    force: bool,
    flag: bool,
) -> None:
    cloud_api.compute, cloud_api.volume = compute, volume
    cloud = await connect(cloud_api, Pauses())
    facts = await facts_from(cloud_api, cloud, Reply(body={"quota_set": {}}))
    assert (facts.compute_version, facts.block_storage_version) == (sent_compute, sent_volume)

    snapshots = Snapshots(cloud_api)
    accepted = Reply(202, {"snapshot": {"id": "snap-0"}}, effect=snapshots.make)
    cloud_api.says("POST", "/volume/v3/snapshots", accepted)
    await cloud.create_snapshot(VOLUME_ID, "s", "tr-1")
    post = cloud_api.posts("/volume/v3/snapshots")[0]
    assert post.headers["OpenStack-API-Version"] == f"volume {sent_volume}"
    assert post.body["snapshot"].get("force", False) is force

    path = f"/compute/v2.1/servers/{SERVER_ID}/os-volume_attachments"
    cloud_api.says("GET", path, Reply(body={"volumeAttachments": []}))
    cloud_api.says("POST", path, Reply(202))
    await cloud.attach(SERVER_ID, VOLUME_ID)
    post = cloud_api.posts(path)[0]
    assert post.headers["OpenStack-API-Version"] == f"compute {sent_compute}"
    assert ("delete_on_termination" in post.body["volumeAttachment"]) is flag
    assert "device" not in post.body["volumeAttachment"]
    if not flag:
        with pytest.raises(Stop) as stop:
            await cloud.attach(SERVER_ID, VOLUME_ID, delete_on_termination=True)
        assert "2.79" in stop.value.what
    await cloud.close()
