// Requests to the program. Addresses are relative, so they keep the token of the page's address.

export class Problem extends Error {
  /** kind: "conflict", "wrong", "disk", "request", "bug"; "offline" or "token" from here. */
  constructor(kind, message, status = 0) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, { cache: "no-store", ...options });
  } catch {
    throw new Problem("offline", "The program does not answer.");
  }
  if (answer.ok) return answer;
  if (answer.status === 403) {
    throw new Problem("token", "The program was started again and has a new address.", 403);
  }
  let content;
  try {
    content = await answer.json();
  } catch {
    content = { kind: "bug", error: `The program answered ${answer.status}.` };
  }
  throw new Problem(content.kind, content.error, answer.status);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, content) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(content),
  };
  return (await request(path, options)).json();
}

/** Get a map of bytes: { width, height, bytes, revision, version }. */
export async function getMap(path) {
  const answer = await request(path);
  return {
    width: Number(answer.headers.get("X-Width")),
    height: Number(answer.headers.get("X-Height")),
    revision: answer.headers.get("X-Revision"),
    version: Number(answer.headers.get("X-Version")),
    bytes: new Uint8Array(await answer.arrayBuffer()),
  };
}

/** Load a picture; throws a Problem with the program's reason if there is none. */
export async function getPicture(path) {
  const answer = await request(path, { cache: "default" });
  return createImageBitmap(await answer.blob());
}

/** Call `handle(event)` for each event; `lost()` and `found()` when the connection goes and comes. */
export function listen(handle, lost, found) {
  const silence = 25_000; // ms; the program sends something at least every 10 s
  let source;
  let timer;
  const open = () => {
    source = new EventSource("api/events");
    source.onopen = () => {
      found();
      watch();
    };
    source.onmessage = (message) => {
      watch();
      handle(JSON.parse(message.data));
    };
    source.onerror = () => {
      lost();
      source.close();
      clearTimeout(timer);
      setTimeout(open, 1000);
    };
  };
  const watch = () => {
    clearTimeout(timer);
    timer = setTimeout(() => source.onerror(), silence);
  };
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => event.persisted && open());
  open();
}
