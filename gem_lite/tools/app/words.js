// The words as chips: a click switches one off and on, dragging or Alt with an arrow moves it.

const FAR = 8; // pixels that a finger or mouse goes before it drags

export class Words {
  // changed(): called after a switch, a move or a removal, for which the answer at hand is enough.
  constructor(list, colours, changed) {
    this.list = list;
    this.colours = colours;
    this.changed = changed;
    this.items = []; // { name, on, colour: index }
    list.addEventListener("pointerdown", (event) => this.drag(event));
    list.addEventListener("keydown", (event) => this.key(event));
  }

  get names() { return this.items.map((item) => item.name); }

  get on() { return this.items.filter((item) => item.on); }

  // Adds what is new of a text with commas, or of a list; returns whether there was something.
  add(words) {
    const before = this.items.length;
    for (const word of Array.isArray(words) ? words : words.split(",")) {
      const name = word.trim().replace(/\s+/g, " ");
      if (!name || this.names.includes(name)) continue;
      const taken = this.items.map((item) => item.colour);
      const free = this.colours.findIndex((_, index) => !taken.includes(index));
      this.items.push({ name, on: true, colour: Math.max(free, 0) });
    }
    this.show();
    return this.items.length > before;
  }

  set(words, off = []) {
    this.items = [];
    this.add(words);
    for (const item of this.items) item.on = !off.includes(item.name);
    this.show();
  }

  move(from, to) {
    if (to < 0 || to >= this.items.length || from === to) return;
    this.items.splice(to, 0, ...this.items.splice(from, 1));
    this.show();
    this.changed();
  }

  show() {
    this.list.replaceChildren(...this.items.map((item, index) => {
      const chip = document.createElement("li");
      chip.className = "chip";
      chip.dataset.index = index;
      const name = document.createElement("button");
      name.type = "button";
      name.className = "name";
      name.setAttribute("aria-pressed", String(item.on));
      name.title = item.on ? "Switch off" : "Switch on";
      const swatch = document.createElement("i");
      swatch.style.setProperty("background", `rgb(${this.colours[item.colour].join(" ")})`);
      const text = document.createElement("span");
      text.textContent = item.name;
      name.append(swatch, text);
      name.addEventListener("click", () => {
        if (this.dragged) return;
        item.on = !item.on;
        this.show();
        this.focus(index);
        this.changed();
      });
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "remove";
      remove.setAttribute("aria-label", `Remove ${item.name}`);
      remove.textContent = "×";
      remove.addEventListener("click", () => {
        this.items = this.items.filter((other) => other !== item);
        this.show();
        this.focus(Math.min(index, this.items.length - 1));
        this.changed();
      });
      chip.append(name, remove);
      return chip;
    }));
  }

  focus(index) {
    if (index >= 0) this.list.children[index].firstChild.focus();
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const chip = event.target.closest(".chip");
    if (!step || !event.altKey || !chip) return;
    event.preventDefault();
    const from = Number(chip.dataset.index);
    const to = Math.min(Math.max(from + step, 0), this.items.length - 1);
    this.move(from, to);
    this.focus(to);
  }

  drag(event) {
    const chip = event.target.closest(".chip");
    this.dragged = false;
    if (!chip || event.button) return;
    let from = Number(chip.dataset.index);
    const move = (moved) => {
      if (!this.dragged && Math.hypot(moved.clientX - event.clientX, moved.clientY - event.clientY) < FAR) return;
      this.dragged = true;
      const over = document.elementFromPoint(moved.clientX, moved.clientY)?.closest(".chip");
      if (over && this.list.contains(over)) {
        const to = Number(over.dataset.index);
        this.move(from, to);
        from = to;
      }
      this.list.children[from].classList.add("moving");
    };
    const end = () => {
      document.removeEventListener("pointermove", move);
      for (const other of this.list.children) other.classList.remove("moving");
      setTimeout(() => { this.dragged = false; });
    };
    document.addEventListener("pointermove", move);
    document.addEventListener("pointerup", end, { once: true });
    document.addEventListener("pointercancel", end, { once: true });
  }
}
