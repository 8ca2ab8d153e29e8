// Two time points of a hippocampus lie over each other, and take turns by themselves or by hand.
for (const panel of document.querySelectorAll(".over-time")) {
  const pick = (name) => panel.querySelector(`.compare .${name}`);
  const stage = pick("stage"), one = pick("one"), two = pick("two");
  const frames = panel.querySelectorAll(".strip .time-point");
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const turn = (mode, on) => {
    stage.classList.toggle(mode, on);
    press(pick(mode), on);
  };
  const show = () => {
    stage.replaceChildren(...[one, two].map((choice) => frames[choice.selectedIndex].cloneNode(true)));
  };
  for (const choice of [one, two]) choice.addEventListener("change", show);
  pick("flick").addEventListener("click", () => {
    const on = !stage.classList.contains("flick");
    turn("other", false);
    turn("flick", on);
  });
  pick("other").addEventListener("click", () => {
    const on = !stage.classList.contains("other");
    turn("flick", false);
    turn("other", on);
  });
  pick("hide").addEventListener("click", () => press(pick("hide"), panel.classList.toggle("plain")));
  show();
}
