"""The part of coremltools 9.0's ``remote_device`` that the agent uses; the phone and its app are made up."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path


class DeviceState(Enum):
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True)
class AppSigningCredentials:
    development_team: str = ""
    provisioning_profile_uuid: str = None
    bundle_identifier: str = None


class _AppSession:
    def __init__(self, working_directory):
        self.working_directory = working_directory
        self.is_alive = True

    def stop(self):
        self.is_alive = False
        with open(os.path.expanduser("~/modelrunner.log"), "a") as stream:
            stream.write("stopped\n")


@dataclass(frozen=True)
class Device:
    name: str
    udid: str
    state: DeviceState
    session: object = None

    @staticmethod
    def get_devices():
        if shutil.which("devicectl") is None:
            raise ValueError("The 'devicectl' command is required.")
        path = os.path.expanduser("~/devices-of-coremltools.json")
        subprocess.run(["xcrun", "devicectl", "list", "devices", "-j", path], check=True)
        with open(path) as stream:
            listed = json.load(stream)["result"]["devices"]
        return [
            Device(
                name=one["deviceProperties"]["name"],
                udid=one["hardwareProperties"]["udid"],
                state=DeviceState(one["connectionProperties"]["tunnelState"]),
            )
            for one in listed
        ]

    async def prepare_for_model_debugging(self, credentials=None, working_directory=None, clean=False):
        if self.state != DeviceState.CONNECTED:
            raise ValueError(f"The device cannot be used for model debugging. Current state: {self.state}.")
        if not isinstance(working_directory, Path) or not working_directory.is_dir():
            raise ValueError(f"The specified working directory '{working_directory}' is invalid.")
        if os.path.exists(os.path.expanduser("~/locked")):
            raise RuntimeError("[Error Code 65] None")  # what is left of Xcode's words where it cannot sign
        with open(os.path.expanduser("~/modelrunner.log"), "a") as stream:
            stream.write(f"{credentials.development_team} {credentials.bundle_identifier}\n")
        (working_directory / "build/1234/requests").mkdir(parents=True)
        return replace(self, session=_AppSession(working_directory / "build"))
