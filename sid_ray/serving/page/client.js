// The server's HTTP interface: a token where it asks for one, waiting where it is busy, errors in
// the server's words.

const TOKEN = "sid-ray-token";
const LOST = 5; // tries, each twice as long after the one before

/** The server has refused: ``field`` names what of the request it is about, or is empty. */
export class Refused extends Error {
  constructor(status, error) {
    super(sentence(error?.message || `the server answered ${status}`));
    this.status = status;
    this.field = (error?.field || "").replace(/\[.*/, ""); // of "seeds[3]", seeds
  }
}

const ended = (words) => (/[.!?…]$/.test(words) ? words : `${words}.`);
const sentence = (words) => ended(words[0].toUpperCase() + words.slice(1));

/** Nobody answers. */
export class Gone extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** Keeps the one of ``#token=`` in the address, which is taken from there: addresses are copied and
 * kept. Returns whether there was one. */
export function tokenFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return false;
  keepToken(given);
  history.replaceState(history.state, "", location.pathname + location.search);
  return true;
}

/** For this tab alone, until it is closed. */
export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token.trim());
}

export const hasToken = () => Boolean(sessionStorage.getItem(TOKEN));

export class Client {
  /** ``onWait(seconds, why)`` is called some times a second while it waits, at last with 0. */
  constructor(onWait) {
    this.onWait = onWait;
    this.notBefore = 0;
    this.why = "";
  }

  /** {models, limits} */
  models() {
    return this.ask("v1/models", {});
  }

  /** Asks for some images, as often as it takes while the server is busy. */
  images(body, signal) {
    return this.ask("v1/images", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
      signal,
    });
  }

  async ask(path, options) {
    for (let lost = 0; ; ) {
      await this.untilFree(options.signal);
      const answer = await send(path, options);
      const busy = answer.status === 429;
      // Words of Serve's proxy, not ours: what answers HTTP behind it ended, and another one starts.
      const bare = answer.status === 500 && !/json/.test(answer.headers.get("Content-Type"));
      const wait = Number(answer.headers.get("Retry-After")) || (busy || bare ? 1 : 0);
      // 503 with a time: it starts, or has lost a replica; for some tries it is believed.
      const passing = bare || answer.status === 503;
      if (!wait || !(busy || (passing && ++lost <= LOST))) return read(answer);
      const refused = await read(answer).catch((error) => error);
      this.why = busy ? "The server is busy." : refused.message;
      const longer = busy ? 1 : 2 ** (lost - 1);
      this.notBefore = Math.max(this.notBefore, Date.now() + wait * longer * 1000);
    }
  }

  /** Resolves when the server may be asked again. Rejects where ``signal`` says so. */
  async untilFree(signal) {
    while (Date.now() < this.notBefore) {
      signal?.throwIfAborted();
      this.onWait(Math.ceil((this.notBefore - Date.now()) / 1000), this.why);
      await pause(Math.min(this.notBefore - Date.now(), 250), signal);
      if (Date.now() >= this.notBefore) this.onWait(0, "");
    }
  }
}

async function send(path, options) {
  const token = sessionStorage.getItem(TOKEN);
  const bearer = token && { Authorization: `Bearer ${token}` };
  const headers = { Accept: "application/json", ...options.headers, ...bearer };
  try {
    return await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Gone();
  }
}

async function read(answer) {
  let body = null;
  try {
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (answer.ok) throw new Gone(); // it ended in the middle of its answer
  }
  if (!answer.ok) throw new Refused(answer.status, body?.error);
  return body;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
