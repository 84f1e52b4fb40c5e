"""A server behind nginx for its tests, as a process that can be killed: `python tests/backend.py PORT NAME LOG`.

Answers every request with who it is and what it got, and writes that down in LOG before it answers. The header
`x-test` (`NAME=503`, `NAME=die`) makes the server of that name refuse, or hang up without an answer. Standard library
only, so that it is up in a tenth of a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path


async def main(port: int, name: str, log: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _one(reader, writer, name, log):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # whoever hung up is no concern of a server's
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, log: Path) -> bool:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    told = {"server": name, "method": method, "path": path, "headers": headers, "bytes": len(body)}
    with log.open("a") as file:
        file.write(json.dumps(told) + "\n")
    command = dict(part.split("=") for part in headers.get("x-test", "").split(",") if part).get(name, "200")
    if command == "die":
        return False
    answer = json.dumps(told).encode()
    writer.write(f"HTTP/1.1 {command} said\r\ncontent-type: application/json\r\n".encode())
    writer.write(f"content-length: {len(answer)}\r\n\r\n".encode() + answer)
    await writer.drain()
    return True


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
