// One turn of the conversation: what was asked, what comes back, and the state it is in.

import { at, button, make, say } from "./dom.js";

const nearEnd = () => at("talk").scrollHeight - at("talk").scrollTop - at("talk").clientHeight < 80;
const toEnd = () => (at("talk").scrollTop = at("talk").scrollHeight);

export class Turn {
  constructor(words, pictures, who) {
    const shown = pictures.map(({ url, name }) => make("img", { src: url, alt: name }));
    this.words = words;
    this.reply = make("div", { className: "reply" });
    this.note = make("p", { className: "note faint" });
    this.body = make("article", {},
      make("h2", { className: "unseen" }, "You"),
      make("div", { className: "asked" }, ...shown, words ? make("p", { dir: "auto" }, words) : null),
      make("h2", { className: "unseen" }, who), this.reply, this.note);
    at("turns").append(make("li", {}, this.body));
    at("empty").hidden = true;
    toEnd();
  }

  begin() {
    this.text = null;
    this.frames = [];
    this.reply.replaceChildren();
    this.body.setAttribute("aria-busy", "true");
    this.status("Sent");
    this.began = false;
  }

  // While it waits: "Queued", "Reading"; `actions` are buttons behind the words.
  status(words, ...actions) {
    this.change(() => this.note.replaceChildren(make("span", {}, words), ...actions));
  }

  change(how) {
    const follow = nearEnd();
    how();
    if (follow) toEnd();
  }

  write(text) {
    this.started("Writing");
    this.change(() => {
      this.text ??= this.reply.appendChild(make("p", { dir: "auto" }));
      this.text.append(text);
    });
  }

  started(doing) {
    if (this.began) return;
    this.began = true;
    this.status(doing);
  }

  // Places for pictures that are drawn; each has a preview, then the picture itself.
  expect(count, size, alt) {
    const [width, height] = (size ?? "1x1").split("x").map(Number);
    for (let index = 0; index < count; index++) {
      const image = make("img", { alt, width, height, hidden: true });
      const bar = make("progress", { max: 1, aria: { label: `Picture ${index + 1} of ${count}` } });
      const empty = make("div", { className: "blank" });
      empty.style.aspectRatio = `${width} / ${height}`;
      const caption = make("figcaption", {}, bar);
      this.frames.push({ image, bar, empty, caption, figure: make("figure", {}, empty, image, caption) });
    }
    this.change(() => this.reply.append(make("div", { className: "drawn" }, ...this.frames.map((each) => each.figure))));
  }

  preview(index, src, share) {
    this.started("Drawing");
    const frame = this.frames[index];
    Object.assign(frame.image, { src, hidden: false });
    frame.image.classList.add("early");
    frame.empty.remove();
    frame.bar.value = share;
  }

  picture(index, src, ...caption) {
    this.started("Drawing");
    const frame = this.frames[index];
    this.change(() => {
      Object.assign(frame.image, { src, hidden: false });
      frame.image.classList.remove("early");
      frame.empty.remove();
      frame.caption.replaceChildren(...caption);
    });
  }

  // A picture in the middle of a reply; words after it begin anew.
  inline(image, ...caption) {
    this.started("Writing");
    this.text = null;
    const figure = make("figure", {}, image, make("figcaption", {}, ...caption));
    this.change(() => this.reply.append(make("div", { className: "drawn" }, figure)));
  }

  end(words, spoken) {
    this.body.removeAttribute("aria-busy");
    this.status(words);
    say(spoken);
  }

  // What is not whole goes, but for its last preview.
  stopped(retry) {
    this.leave();
    this.status("Stopped.", button("Try again", retry, { className: "link again" }));
    say("Stopped.");
  }

  leave() {
    this.body.removeAttribute("aria-busy");
    for (const { bar, empty, figure } of this.frames) {
      if (empty.isConnected) figure.remove();
      else bar.remove();
    }
  }

  fail(message, advice, action) {
    this.leave();
    this.status("");
    const box = make("div", { className: "failed", role: "alert" },
      make("p", {}, message), advice ? make("p", { className: "faint" }, advice) : null, action);
    this.change(() => this.reply.append(box));
  }

  // A later turn follows: what would do this one again goes.
  settle() {
    for (const each of this.body.querySelectorAll(".again, .failed button")) each.remove();
  }
}
