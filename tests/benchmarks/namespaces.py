"""A network of hosts that are none: a network namespace per host, on one switch, each uplink with a limited rate."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

BURST = "16kb"
"""A token bucket as small as the kernel takes for such rates: few messages go out at once at full speed."""


class Host(NamedTuple):
    """A namespace and its address."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """What runs these words there."""
        return ["ip", "netns", "exec", self.name, *words]


def missing() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if os.name != "posix" or os.geteuid():
        return "network namespaces need root"
    absent = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if absent:
        return f"network namespaces need the tools of iproute2: there is no {absent[0]}"
    with ExitStack() as stack:
        try:
            wire(stack, 1, "1gbit")
        except subprocess.CalledProcessError as problem:
            return f"no network namespaces here: {problem.stderr.strip()}"
    return ""


@contextmanager
def hosts(count: int, rate: str) -> Iterator[list[Host]]:
    """That many hosts, each sending at up to `rate` (as tc takes it: "100mbit"). They are removed in the end."""
    with ExitStack() as stack:
        yield wire(stack, count, rate)


def wire(stack: ExitStack, count: int, rate: str) -> list[Host]:
    """Make them, leaving to `stack` how they are removed. Raises CalledProcessError."""
    switch = add_namespace(stack, "switch")
    do("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
    do("ip", "-n", switch, "link", "set", "bridge", "up")
    return [add_host(stack, switch, number, rate) for number in range(count)]


def add_host(stack: ExitStack, switch: str, number: int, rate: str) -> Host:
    name, port = add_namespace(stack, str(number)), f"port{number}"
    do("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "uplink", "netns", name)
    do("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    do("ip", "-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "uplink")
    do("ip", "-n", name, "link", "set", "uplink", "up")
    do("ip", "-n", name, "link", "set", "lo", "up")
    do("tc", "-n", name, "qdisc", "add", "dev", "uplink", "root", "tbf", "rate", rate, "burst", BURST, "latency", "1s")
    return Host(name, f"10.77.0.{number + 1}")


def add_namespace(stack: ExitStack, suffix: str) -> str:
    name = f"pipeinfer-{os.getpid()}-{suffix}"
    do("ip", "netns", "add", name)
    stack.callback(do, "ip", "netns", "del", name)
    return name


def do(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
