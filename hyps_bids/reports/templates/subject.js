// Outlines come and go, by button.
for (const figure of document.querySelectorAll(".picture")) {
  const modes = { flicker: "flickering", hide: "plain" };
  for (const [name, mode] of Object.entries(modes)) {
    figure.querySelector(`button.${name}`)?.addEventListener("click", () => {
      const on = figure.classList.toggle(mode);
      for (const [other, its] of Object.entries(modes)) {
        if (other !== name) figure.classList.remove(its);
        const pressed = other === name && on;
        figure.querySelector(`button.${other}`).setAttribute("aria-pressed", String(pressed));
      }
    });
  }
}
