from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    torch: str
    cuda: str | None
    archs: list[str]

def build_info() -> BuildInfo: ...
