// Buttons let the outline of a picture flicker or hide it.
for (const picture of document.querySelectorAll(".picture")) {
  const modes = { flicker: "flickering", hide: "plain" };
  for (const [name, mode] of Object.entries(modes)) {
    picture.querySelector(`button.${name}`)?.addEventListener("click", () => {
      const on = picture.classList.toggle(mode);
      for (const [other, its] of Object.entries(modes)) {
        if (other !== name) picture.classList.remove(its);
        const pressed = other === name && on;
        picture.querySelector(`button.${other}`).setAttribute("aria-pressed", String(pressed));
      }
    });
  }
}
