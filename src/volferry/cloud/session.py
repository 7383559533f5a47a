"""The way to a cloud: credentials, catalogue, microversions, and one request at a time.

The only module that imports openstacksdk. Of the SDK it takes what every OpenStack user relies on:
``clouds.yaml``, ``OS_*`` variables and each way to authenticate. Requests are sent as plain JSON
through keystoneauth instead of the SDK's resources: those hide which status a service answered, and
that is what decides here whether a request may be sent again.

Nothing secret is ever put into an error: keystoneauth's own texts are not passed on, since they
quote URLs, and whoever writes a password into one finds it there.
"""

import contextlib
import html
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

import requests
from keystoneauth1 import adapter, discover
from keystoneauth1 import exceptions as ks
from keystoneauth1 import session as ks_session
from keystoneauth1.identity.base import BaseIdentityPlugin
from openstack import exceptions as sdk
from openstack.config import cloud_region, loader
from urllib3 import exceptions as u3

from volferry import scrub
from volferry.cloud.retries import Answer, Unanswered, Unsent, retry_after_s
from volferry.errors import Retry, Stop, Usage, VolferryError

Service: TypeAlias = Literal["compute", "block-storage"]
Version: TypeAlias = tuple[int, int]

_MAJOR = {"compute": "2", "block-storage": "3"}
_NEWEST_KNOWN: dict[str, Version] = {"compute": (2, 101), "block-storage": (3, 71)}
"""A newer microversion may change any answer, so none is asked for that was not read about."""

_NOTHING_DONE = "nothing was asked of the cloud"


class Session:
    """An authenticated way to one region of one cloud; safe to use from several threads."""

    def __init__(self, region: cloud_region.CloudRegion, counted: "_Counted") -> None:
        self._counted = counted
        self._session = region.get_session()
        self.cloud: str = region.name
        self.project_id = ""
        self.region = ""
        self._adapters: dict[str, adapter.Adapter] = {}
        self._versions: dict[str, Version | None] = {}
        with _translated(self.cloud, "authenticate"):
            self.project_id = self._session.get_project_id() or ""
            scrub.learn([self._session.get_token() or ""])
        if not self.project_id:
            raise Usage(
                f"the credentials of cloud '{self.cloud}' belong to no project",
                data=_NOTHING_DONE,
                hint="set project_name or project_id (OS_PROJECT_NAME) beside them",
            )
        for service in ("compute", "block-storage"):
            self._open(region, service)

    @property
    def api_calls(self) -> int:
        return self._counted.sent

    @classmethod
    def connect(cls, os_cloud: str, region: str, config_file: str, answer_s: float) -> "Session":
        """Read the credentials, authenticate and look the services up: 4 or 5 requests.

        Raises ``Usage`` for what is wrong with credentials, names and regions, ``Stop`` for TLS and
        ``Retry`` when nobody answers.
        """
        counted = _Counted()
        try:
            config = _config(config_file, counted)
            chosen = _choose(config, os_cloud)
            # As openstackclient does; the SDK alone heeds OS_REGION_NAME for no named cloud.
            wanted = region or os.environ.get("OS_REGION_NAME", "")
            one = config.get_one(chosen, region_name=wanted)
        except sdk.ConfigException as wrong:
            counted.close()
            raise Usage(_line(str(wrong)), data=_NOTHING_DONE) from wrong
        except ks.ClientException as wrong:
            # Which options a way to authenticate lacks; option names, never their values.
            counted.close()
            raise Usage(
                f"the credentials of cloud '{chosen}' are not complete: {_line(str(wrong))}",
                data=_NOTHING_DONE,
                hint="see the 'auth' section of clouds.yaml, or the OS_* variables",
            ) from wrong
        except VolferryError:
            counted.close()
            raise
        scrub.learn(scrub.known({}, one.config))
        if one.config.get("api_timeout") is None:
            one.config["api_timeout"] = answer_s  # requests would otherwise wait for ever
        try:
            return cls(one, counted)
        except VolferryError:
            counted.close()
            raise

    def close(self) -> None:
        self._counted.close()

    def version(self, service: Service) -> str:
        """The microversion that requests carry, such as ``2.96``; empty where there are none."""
        version = self._versions[service]
        return f"{version[0]}.{version[1]}" if version else ""

    def supports(self, service: Service, version: Version) -> bool:
        negotiated = self._versions[service]
        return negotiated is not None and negotiated >= version

    def request(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Send one request, once, and return whatever the service answers.

        An expired token is replaced and the request sent again by keystoneauth (a 401 is refused as
        a whole). Raises ``Unsent``, ``Unanswered``, or ``Stop`` when the credentials are refused.
        """
        with _translated(self.cloud, f"{method} {path}"):
            response = self._adapters[service].request(
                path,
                method,
                json=body,
                params=dict(params) if params else None,
                microversion=self.version(service) or None,
                raise_exc=False,
                connect_retries=0,
                status_code_retries=0,
                headers={"Accept": "application/json"},
            )
        if response.status_code == 401:
            raise _auth_refused(self.cloud)
        return _answer(response)

    # ---- finding the services ----------------------------------------------------------------

    def _open(self, region: cloud_region.CloudRegion, service: Service) -> None:
        major = _MAJOR[service]
        one = adapter.Adapter(
            session=self._session,
            service_type=region.get_service_type(service),
            service_name=region.get_service_name(service),
            interface=region.get_interface(service),
            region_name=region.get_region_name(service),
            endpoint_override=region.get_endpoint(service),
            min_version=major,
            max_version=f"{major}.latest",
            rate_limit=region.get_rate_limit(service),
            concurrency=region.get_concurrency(service),
        )
        with _translated(self.cloud, f"look up {service}"):
            self._one_region(region, service)
            try:
                data = one.get_endpoint_data()
            except ks.EndpointNotFound:
                data = None
            if data is None or not data.url:
                raise self._no_service(region, service)
        self.region = data.region_name or region.get_region_name(service) or self.region
        self._adapters[service] = one
        self._versions[service] = _negotiate(service, data.min_microversion, data.max_microversion)

    def _regions(self, service: Service) -> list[str]:
        """The regions in which the catalogue has this service."""
        auth = self._session.auth
        if not isinstance(auth, BaseIdentityPlugin):
            return []
        catalog = auth.get_access(self._session).service_catalog
        found = catalog.get_endpoints_data(service_type=service)
        return sorted({e.region_name for es in found.values() for e in es if e.region_name})

    def _one_region(self, region: cloud_region.CloudRegion, service: Service) -> None:
        # Without a region keystoneauth takes the first endpoint of each service, and those of
        # compute and block storage may then lie in different regions.
        if region.get_region_name(service) or region.get_endpoint(service):
            return
        regions = self._regions(service)
        if len(regions) > 1:
            raise Usage(
                f"cloud '{self.cloud}' has {len(regions)} regions and none was chosen: "
                + ", ".join(regions),
                data=_NOTHING_DONE,
                hint="set region_name in clouds.yaml or OS_REGION_NAME",
            )

    def _no_service(self, region: cloud_region.CloudRegion, service: Service) -> Usage:
        wanted = region.get_region_name(service)
        regions = self._regions(service)
        where = f" in region '{wanted}'" if wanted else ""
        others = f"it exists in: {', '.join(regions)}" if regions else "the catalogue has none"
        return Usage(
            f"cloud '{self.cloud}' offers these credentials no {service}{where}; {others}",
            data=_NOTHING_DONE,
            hint="set region_name in clouds.yaml or OS_REGION_NAME",
        )


def _negotiate(
    service: str, lowest: tuple[Any, ...] | None, highest: tuple[Any, ...] | None
) -> Version | None:
    """The highest microversion that both sides know; the cloud's lowest when we are too old."""
    if not highest:
        return None
    lower: Version = (int(lowest[0]), int(lowest[1])) if lowest else (0, 0)
    upper: Version = (
        int(highest[0]),
        10**6 if highest[1] == discover.LATEST else int(highest[1]),
    )
    return max(lower, min(upper, _NEWEST_KNOWN[service]))


# ---- credentials ---------------------------------------------------------------------------------


def _config(config_file: str, counted: "_Counted") -> loader.OpenStackConfig:
    if config_file and not Path(config_file).is_file():
        raise Usage(f"there is no file '{config_file}' with credentials", data=_NOTHING_DONE)
    # openstacksdk 4.22 warns at every cloud of an InfluxDB client that nobody asked for.
    warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module=r"openstack\.")
    return loader.OpenStackConfig(
        config_files=[config_file] if config_file else None,
        # OS_CLIENT_CONFIG_FILE would win over the file that was named on the command line.
        load_envvars=not config_file,
        session_constructor=counted.keystone_session,  # type: ignore[arg-type]  # any callable does
        app_name="volferry",
        app_version=metadata.version("volferry"),
    )


def _choose(config: loader.OpenStackConfig, os_cloud: str) -> str:
    """The name of the cloud to use, as openstackclient would choose it."""
    names = sorted(config.get_cloud_names())
    real = [n for n in names if n != "defaults" or config.config_filename]
    wanted = os_cloud or os.environ.get("OS_CLOUD") or config.default_cloud or ""
    if not real:
        raise Usage(
            "no cloud is configured" + (f": there is no cloud '{os_cloud}'" if os_cloud else ""),
            data=_NOTHING_DONE,
            hint="put clouds.yaml beside you or into ~/.config/openstack, "
            "or source the cloud's openrc file",
        )
    if not wanted:
        raise Usage(
            f"{len(real)} clouds are configured and none was chosen: {', '.join(real)}",
            data=_NOTHING_DONE,
            hint="--os-cloud NAME, or export OS_CLOUD=NAME",
        )
    if wanted not in names:
        raise Usage(
            f"cloud '{wanted}' is not configured; configured are: {', '.join(real)}",
            data=_NOTHING_DONE,
            hint=f"read: {config.config_filename or 'no file, only OS_* variables'}",
        )
    return wanted


class _Counted(requests.Session):
    """Counts every request that is sent, authentication and discovery included."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self._lock = threading.Lock()
        for scheme in list(self.adapters):
            # What keystoneauth mounts by itself when it makes the session: without keep-alive
            # probes a connection that a firewall dropped is noticed after hours.
            self.mount(scheme, ks_session.TCPKeepAliveAdapter())

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        with self._lock:
            self.sent += 1
        return super().send(request, **kwargs)

    def keystone_session(self, **kwargs: Any) -> ks_session.Session:
        return ks_session.Session(session=self, **kwargs)


# ---- errors at the border ------------------------------------------------------------------------


@contextlib.contextmanager
def _translated(cloud: str, what: str) -> Iterator[None]:
    """Turn keystoneauth's exceptions into ours."""
    try:
        yield
    except ks.SSLError as wrong:
        raise Stop(
            f"the TLS certificate of cloud '{cloud}' cannot be trusted: {_root(wrong)}",
            data=_NOTHING_DONE,
            hint="give the authority's certificate as 'cacert' in clouds.yaml (OS_CACERT)",
        ) from wrong
    except (ks.ConnectFailure, ks.ConnectTimeout, ks.UnknownConnectionError) as lost:
        raise _lost(cloud, what, lost) from lost
    except (ks.Unauthorized, ks.AuthorizationFailure) as wrong:
        raise _auth_refused(cloud) from wrong
    except (ks.DiscoveryFailure, ks.NotFound, ks.InvalidResponse) as wrong:
        raise Usage(
            f"what answers at the authentication URL of cloud '{cloud}' is not Keystone",
            data=_NOTHING_DONE,
            hint="check auth_url (OS_AUTH_URL); it usually ends in /v3",
        ) from wrong
    except ks.HttpError as wrong:
        status = wrong.http_status
        error: type[VolferryError] = Retry if status in (408, 429) or status >= 500 else Stop
        raise error(
            f"cloud '{cloud}' answered HTTP {status} to: {what}", data=_NOTHING_DONE
        ) from wrong
    except (ks.ClientException, sdk.SDKException) as wrong:
        # All others are about what was configured; their class says it, and their text may quote.
        raise Usage(
            f"cloud '{cloud}' cannot be used: {type(wrong).__name__} at: {what}",
            data=_NOTHING_DONE,
        ) from wrong


def _auth_refused(cloud: str) -> Usage:
    return Usage(
        f"cloud '{cloud}' refused the credentials (HTTP 401)",
        data="what was done so far is kept; nothing more was asked of the cloud",
        hint="expired application credential, wrong password, or no role in the project?\n"
        f"openstack --os-cloud {cloud} token issue     tries the same credentials",
    )


def _lost(cloud: str, what: str, lost: Exception) -> Retry:
    never_sent = (u3.NewConnectionError, u3.ConnectTimeoutError)
    sent = not any(isinstance(e, (*never_sent, requests.ConnectTimeout)) for e in _chain(lost))
    kind = Unanswered if sent else Unsent
    fate = "gave no answer to" if sent else "cannot be reached for"
    return kind(
        f"cloud '{cloud}' {fate}: {what} ({_root(lost)})",
        data="the request may have been carried out" if sent else _NOTHING_DONE,
        hint="check the network, the proxy variables and auth_url",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it wraps: urllib3 and requests nest causes in three ways."""
    seen: set[int] = set()
    todo: list[BaseException] = [error]
    while todo:
        one = todo.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        todo += [e for e in inner if isinstance(e, BaseException)]


def _root(error: BaseException) -> str:
    """The operating system's own words, such as ``Connection refused``; no URL, no address."""
    chain = list(_chain(error))
    for one in chain:
        if (
            isinstance(one, OSError)
            and one.strerror
            and not isinstance(one, requests.RequestException)
        ):
            return one.strerror
        verify = getattr(one, "verify_message", "")
        if verify:
            return str(verify)
    if any(isinstance(e, (requests.Timeout, u3.TimeoutError)) for e in chain):
        return "timed out: --answer-timeout, or api_timeout in clouds.yaml"
    return type(chain[-1]).__name__


# ---- answers -------------------------------------------------------------------------------------


def _answer(response: requests.Response) -> Answer:
    body: Any = None
    with contextlib.suppress(ValueError):  # an empty 202, or a proxy's HTML page: see the fault
        body = json.loads(response.content) if response.content else None
    fault_name, fault = "", ""
    if response.status_code >= 400:
        fault_name, fault = _fault(body, response)
    return Answer(
        status=response.status_code,
        body=body,
        fault=fault,
        fault_name=fault_name,
        retry_after_s=retry_after_s(response.headers),
        request_id=response.headers.get("x-openstack-request-id")
        or response.headers.get("x-compute-request-id")
        or "",
    )


def _fault(body: Any, response: requests.Response) -> tuple[str, str]:
    """Nova and Cinder answer ``{"badRequest": {"code": 400, "message": "…"}}``; proxies do not."""
    if isinstance(body, dict):
        for name, inner in body.items():
            if isinstance(inner, dict) and inner.get("message"):
                return str(name), _line(str(inner["message"]))
        if body.get("message"):
            return "", _line(str(body["message"]))
    text = re.sub(r"<(script|style|title)\b.*?</\1>|<[^>]+>", " ", response.text, flags=re.S | re.I)
    return "", _line(html.unescape(text)) or response.reason or "no reason given"


def _line(text: str) -> str:
    """On one line, of bearable length, without user names and passwords in URLs."""
    text = re.sub(r"//[^/@\s]*@", "//", text)
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 400 else text[:397] + "…"
