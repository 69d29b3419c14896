// Sends a file, and tells how much of it has arrived and how many of its rows have been read.

// Returns a promise of what the server knows of the table. `sheet` is that of a workbook, or empty for the first. `report` gets {sent} from 0 to 1, then {rows}. Aborting the
// signal ends it. A rejection has a message for people.
export function uploadTable(file, sheet, report, signal) {
  return new Promise((resolve, reject) => {
    // fetch() does not tell how much it has sent.
    const request = new XMLHttpRequest();
    let seen = 0;
    let table = null;
    const fail = (message) => reject(new Error(message));
    const read = () => {
      if (request.status !== 200) return;
      const end = request.responseText.lastIndexOf("\n\n");
      if (end < seen) return;
      const lines = request.responseText.slice(seen, end).split("\n");
      seen = end + 2;
      for (const line of lines.filter((each) => each.startsWith("data: {"))) {
        const said = JSON.parse(line.slice(6));
        if (said.error) fail(said.error.message);
        else if (said.table) ({ table } = said);
        else report(said);
      }
    };
    request.upload.onprogress = ({ loaded, total }) => report({ sent: loaded / total });
    request.onprogress = read;
    request.onload = () => {
      read();
      if (table) resolve(table);
      else fail(messageOf(request));
    };
    request.onerror = () => fail("The server is not reachable, or stopped the upload.");
    request.onabort = () => reject(new DOMException("", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.open("POST", "/new/table");
    request.setRequestHeader("Accept", "application/json");
    const form = new FormData();
    if (sheet) form.append("sheet", sheet);
    form.append("file", file, file.name);
    request.send(form);
  });
}

function messageOf(request) {
  try {
    return JSON.parse(request.responseText).error.message;
  } catch {
    return `The server answered ${request.status}.`;
  }
}
