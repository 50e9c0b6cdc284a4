"""A small window with a text, Save and OK. A process of its own, started by `edit`.

    python -m pydi_fs.shell.tk_editor FILE TITLE

It edits FILE and knows nothing of the cluster. Each Save writes FILE, and the line "save" to
standard output; on standard input comes one line of JSON back: {"kind": "saved"} with what is
stored now, {"kind": "failed"} with a sentence, or {"kind": "conflict"} with the other text, which
one line "both", "mine" or "theirs" answers.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from typing import Any

POLL_MS = 50


def main() -> int:
    path, title = sys.argv[1:]
    try:
        import tkinter
    except ImportError:
        print("no window: Python's tkinter is missing (python3-tk), or set EDITOR", file=sys.stderr)
        return 1
    try:
        root = tkinter.Tk()
    except tkinter.TclError as exc:
        print(f"no window: {exc}", file=sys.stderr)
        return 1
    _Window(tkinter, root, path, title)
    root.mainloop()
    return 0


class _Window:
    """The text, two buttons and a line that says what happened."""

    def __init__(self, tk: Any, root: Any, path: str, title: str) -> None:
        self._tk, self._root, self._path = tk, root, path
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._closes_when_saved = False
        self._waiting = False
        root.title(f"{title} - PyDi")
        root.protocol("WM_DELETE_WINDOW", self._close)
        bar = tk.Frame(root)
        bar.pack(side="bottom", fill="x")
        self._status = tk.Label(bar, anchor="w")
        self._status.pack(side="left", fill="x", expand=True)
        self._ok = tk.Button(bar, text="OK", command=self._save_and_close)
        self._ok.pack(side="right")
        self._save_button = tk.Button(bar, text="Save", command=self._save)
        self._save_button.pack(side="right")
        self._text = tk.Text(root, undo=True, wrap="none", width=80, height=24)
        self._text.pack(side="top", fill="both", expand=True)
        with open(path, encoding="utf-8", newline="") as file:
            self._show(file.read())
        # On the text itself: its own meaning of these keys must not come first.
        self._text.bind("<Control-s>", lambda _: self._save())
        self._text.bind("<Control-Return>", lambda _: self._save_and_close())
        self._text.focus_set()
        # Tk has no way to wait for a pipe on all systems: a thread reads, the window looks.
        threading.Thread(target=self._listen, daemon=True).start()
        root.after(POLL_MS, self._look)

    def _show(self, text: str) -> None:
        self._text.delete("1.0", "end")
        self._text.insert("1.0", text)
        self._text.mark_set("insert", "1.0")
        self._text.edit_reset()
        self._text.edit_modified(False)

    def _content(self) -> str:
        # Tk adds a newline of its own at the end.
        return str(self._text.get("1.0", "end-1c"))

    def _save(self) -> str:
        if not self._waiting:
            self._set_waiting(True)
            with open(self._path, "w", encoding="utf-8", newline="") as file:
                file.write(self._content())
            print("save", flush=True)
        return "break"  # Tk's own meaning of the key is not wanted

    def _save_and_close(self) -> str:
        self._closes_when_saved = True
        return self._save()

    def _close(self) -> None:
        if self._text.edit_modified():
            from tkinter import messagebox

            if not messagebox.askyesno("PyDi", "Close without saving?", parent=self._root):
                return
        self._root.destroy()

    def _set_waiting(self, waiting: bool) -> None:
        self._waiting = waiting
        state = "disabled" if waiting else "normal"
        for widget in (self._text, self._save_button, self._ok):
            widget.configure(state=state)
        if waiting:
            self._status.configure(text="saving ...")

    def _listen(self) -> None:
        for line in sys.stdin:
            self._answers.put(json.loads(line))
        self._answers.put({"kind": "end"})

    def _look(self) -> None:
        try:
            answer = self._answers.get_nowait()
        except queue.Empty:
            self._root.after(POLL_MS, self._look)
            return
        match answer["kind"]:
            case "saved":
                self._set_waiting(False)
                if self._closes_when_saved:
                    self._root.destroy()
                    return
                if answer["text"] != self._content():
                    self._show(answer["text"])
                self._text.edit_modified(False)
                self._status.configure(text=answer["sentence"])
            case "failed":
                self._set_waiting(False)
                self._closes_when_saved = False
                self._status.configure(text=answer["sentence"])
            case "conflict":
                self._ask(answer["theirs"])
            case _:
                self._root.destroy()  # nobody is there any more to save it
                return
        self._root.after(POLL_MS, self._look)

    def _ask(self, theirs: str) -> None:
        """Both texts side by side, and three ways on."""
        tk = self._tk
        window = tk.Toplevel(self._root)
        window.title("Changed meanwhile - PyDi")
        window.transient(self._root)
        tk.Label(window, text="The file was changed meanwhile.").pack(side="top")
        bar = tk.Frame(window)
        bar.pack(side="bottom")

        def answer(choice: str) -> None:
            window.destroy()
            print(choice, flush=True)

        for choice, label in (
            ("both", "Keep both"),
            ("mine", "Take mine"),
            ("theirs", "Take theirs"),
        ):
            tk.Button(bar, text=label, command=lambda c=choice: answer(c)).pack(side="left")
        for side, text in (("left", self._content()), ("right", theirs)):
            pane = tk.LabelFrame(window, text="Mine" if side == "left" else "Theirs")
            pane.pack(side=side, fill="both", expand=True)
            shown = tk.Text(pane, width=50, height=20, wrap="none")
            shown.insert("1.0", text)
            shown.configure(state="disabled")
            shown.pack(fill="both", expand=True)
        # Closing it decides nothing that could lose a text.
        window.protocol("WM_DELETE_WINDOW", lambda: answer("both"))
        window.bind("<Key-b>", lambda _: answer("both"))
        window.bind("<Key-m>", lambda _: answer("mine"))
        window.bind("<Key-t>", lambda _: answer("theirs"))
        window.focus_set()


if __name__ == "__main__":
    sys.exit(main())
