// Lets the reader rotate the figures of isorepro.scenes.rotatable, and play those of rotatable_frames. The drawing in
// a figure stays where this fails.
(() => {
  const element = (tag, className, textContent = "") =>
    Object.assign(document.createElement(tag), { className, textContent });

  function webgl() {
    const context = document.createElement("canvas").getContext("webgl");
    context?.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow only a few at a time
    return Boolean(context);
  }

  // The house style as a template of plotly: the one for the page's theme.
  const theme = (container, { light, dark, pages }) => (container.closest(pages) ? dark : light);

  const turned = (plot) => plot._fullLayout.scene._scene.getCamera(); // as the reader has the box

  const marker = (space, colouring, number) => space.colours[number].map((place) => colouring.palette[place]);

  function hover(space, colouring, number) {
    const step = (place) => `${((2 * place) / colouring.palette.length).toFixed(2)} π`;
    const name = (place) => (colouring.kind === "class" ? colouring.labels[place] : step(place));
    return space.colours[number].map((place) => `${colouring.name}: ${name(place)}`.replaceAll("<", "&lt;"));
  }

  function layout(space, data, template) {
    const quiet = { showticklabels: false, showspikes: false, zeroline: false, ticks: "" };
    const bare = { ...quiet, title: { text: "" }, nticks: 5, showline: true, mirror: true };
    const axis = (range) => ({ range, ...bare });
    const [xaxis, yaxis, zaxis] = space.cube.map(axis);
    // At this distance the corners stay in view from wherever one looks.
    const [x, y, z] = data.eye.map((part) => 2.4 * part);
    const camera = { eye: { x, y, z }, center: { x: 0, y: 0, z: -0.05 } };
    return {
      template,
      scene: { xaxis, yaxis, zaxis, aspectmode: "cube", camera, dragmode: "orbit" },
      margin: { l: 0, r: 0, t: 0, b: 0 },
      showlegend: false,
    };
  }

  // The wheel, and a finger that starts up or down, scroll the page; one that starts sideways rotates. Plotly
  // would take them all: it hears only of the last.
  function sharedGestures(plot) {
    const before = (name, listener) => plot.addEventListener(name, listener, { capture: true, passive: true });
    let start, scrolls;
    before("wheel", (event) => event.stopPropagation());
    before("touchstart", (event) => ([start, scrolls] = [event.touches[0], undefined]));
    before("touchmove", (event) => {
      const { clientX, clientY } = event.touches[0];
      const [across, down] = [clientX - start.clientX, clientY - start.clientY].map(Math.abs);
      scrolls ??= event.touches.length === 1 && down > across;
      if (scrolls) event.stopPropagation();
    });
  }

  function key(colouring) {
    const row = element("div", "isorepro-key");
    const entry = (colour, text, before = "", kind = "") => {
      const swatch = element("i", kind);
      swatch.style.background = colour;
      const span = element("span", "");
      span.append(before, swatch, text);
      row.append(span);
    };
    const { kind, palette, labels } = colouring;
    if (kind === "class") labels.forEach((label, place) => entry(palette[place], label));
    else entry(`linear-gradient(to right, ${[...palette, palette[0]].join()})`, "2π", "0", "isorepro-turn");
    return row;
  }

  // Where the points of a space are at each epoch of a training: x, y and z, whose integers count along the cube.
  function unpacked({ frames, cube, colours }) {
    const bytes = new DataView(Uint8Array.from(atob(frames), (letter) => letter.charCodeAt(0)).buffer);
    const points = colours[0].length;
    const places = (start, [low, high]) =>
      Array.from({ length: points }, (_, point) =>
        low + (high - low) * (bytes.getUint16(start + 2 * point, true) / 65535));
    return Array.from({ length: bytes.byteLength / (6 * points) }, (_, frame) => {
      const [x, y, z] = cube.map((ends, axis) => places(2 * points * (3 * frame + axis), ends));
      return { x, y, z };
    });
  }

  // The clock of a training, which the reader plays, stops and sets; it calls go, which shows a frame. It begins at
  // the end, which says more than a network that has learnt nothing yet.
  function clock(epochs, go) {
    const row = element("div", "isorepro-clock");
    const last = epochs.length - 1;
    const number = (epoch) => epoch.toLocaleString("en");
    const told = element("span", "isorepro-epoch");
    const button = Object.assign(element("button", "", "Play"), { type: "button" });
    const range = Object.assign(element("input", ""), { type: "range", min: 0, max: last, step: 1 });
    range.setAttribute("aria-label", "Epoch of the training");
    let playing; // what tells the run that goes on from one that was stopped
    const tell = (frame) => {
      const text = `epoch ${number(epochs[frame])} of ${number(epochs[last])}`;
      range.value = frame;
      range.setAttribute("aria-valuetext", text);
      told.textContent = text;
    };
    const set = (frame) => {
      tell(frame);
      return go(frame);
    };
    const stop = () => {
      playing = undefined;
      button.textContent = "Play";
    };
    const play = async () => {
      const mine = (playing = {});
      button.textContent = "Pause";
      if (Number(range.value) === last) await set(0);
      while (Number(range.value) < last) {
        await new Promise((after) => setTimeout(() => requestAnimationFrame(after), 160));
        if (playing !== mine) return;
        await set(Number(range.value) + 1);
        if (playing !== mine) return;
      }
      stop();
    };
    button.onclick = () => (playing ? stop() : play());
    range.oninput = () => {
      stop();
      set(Number(range.value));
    };
    row.append(button, range, told);
    tell(last);
    return { row, stop, frame: () => Number(range.value) };
  }

  const config = {
    displaylogo: false, displayModeBar: false, responsive: true, scrollZoom: false,
    plotlyServerURL: "", typesetMath: false,
  };

  async function show(container) {
    const data = JSON.parse(container.querySelector("script").textContent);
    const figure = container.parentElement;
    const plots = [];
    const frames = data.epochs && data.spaces.map(unpacked);
    const states = data.spaces.map(() => element("p", "isorepro-state"));
    const time = data.epochs && clock(data.epochs, (frame) => {
      describe();
      return Promise.all(plots.map((plot, place) => {
        const { x, y, z } = frames[place][frame];
        plot.layout.scene.camera = turned(plot); // else it would jump back while the reader drags
        return Plotly.restyle(plot, { x: [x], y: [y], z: [z] });
      }));
    });
    const themes = new MutationObserver(() => {
      const template = theme(container, data.theme);
      plots.forEach((plot, place) => {
        const fresh = layout(data.spaces[place], data, template);
        fresh.scene.camera = turned(plot);
        Plotly.relayout(plot, fresh);
      });
    });
    const fail = (error) => { // back to the drawing
      if (error) console.error(error);
      themes.disconnect();
      time?.stop();
      plots.forEach(Plotly.purge);
      figure.classList.remove("isorepro-turns");
      container.hidden = true;
      figure.classList.add("isorepro-still");
    };
    const choice = element("div", "isorepro-choice");
    const legend = element("div", "");
    const grid = element("div", "isorepro-spaces");
    const touch = matchMedia("(pointer: coarse)").matches;
    const hint = touch ? "Swipe sideways to rotate, up or down to scroll." : "Drag to rotate.";
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", "Colour the points by");
    grid.classList.toggle("isorepro-watched", Boolean(time));

    let chosen = 0;
    const describe = () => plots.forEach((plot, place) => {
      const { title, colours, states: told } = data.spaces[place];
      const [count, by] = [colours[chosen].length, data.colourings[chosen].name];
      let label = `${title}: ${count} points in a box to rotate, coloured by ${by}`;
      if (time) {
        states[place].textContent = told[time.frame()];
        label += `; epoch ${data.epochs[time.frame()]}: ${told[time.frame()]}`;
      }
      plot.setAttribute("aria-label", label);
    });
    const coloured = (space) => [marker, hover].map((told) => told(space, data.colourings[chosen], chosen));
    const pick = (number) => {
      chosen = number;
      const buttons = [...choice.querySelectorAll("button")];
      buttons.forEach((button, place) => button.setAttribute("aria-pressed", place === number));
      legend.replaceChildren(key(data.colourings[number]));
      describe();
    };
    const choose = (number) => {
      pick(number);
      plots.forEach((plot, place) => {
        const [color, text] = coloured(data.spaces[place]);
        Plotly.restyle(plot, { "marker.color": [color], text: [text] });
      });
    };
    if (data.colourings.length === 1) choice.append(`Colour: ${data.colourings[0].name}`);
    else {
      const button = ({ name }, number) =>
        Object.assign(element("button", "", name), { type: "button", onclick: () => choose(number) });
      choice.append("Colour:", ...data.colourings.map(button));
    }

    container.append(choice, legend, grid, element("p", "isorepro-hint", hint));
    container.hidden = false; // Plotly measures
    try {
      const template = theme(container, data.theme);
      // Everything that takes room comes before the first plot, which keeps the size that its place has now.
      for (const [place, space] of data.spaces.entries()) {
        const box = element("div", "isorepro-space", space.title);
        const plot = element("div", "isorepro-plot");
        plot.setAttribute("role", "img");
        box.append(plot, ...(time ? [states[place]] : []));
        grid.append(box);
        sharedGestures(plot);
        plots.push(plot);
      }
      if (time) grid.before(time.row);
      pick(0);
      for (const [place, space] of data.spaces.entries()) {
        const { x, y, z } = time ? frames[place][time.frame()] : space;
        const [color, text] = coloured(space);
        const dots = { size: 2, line: { width: 0 }, opacity: 1, color };
        const trace = { type: "scatter3d", mode: "markers", x, y, z, marker: dots, text, hoverinfo: "text" };
        await Plotly.newPlot(plots[place], [trace], layout(space, data, template), config);
        plots[place].on("plotly_webglcontextlost", () => fail());
      }
      figure.classList.add("isorepro-turns");
    } catch (error) {
      return fail(error);
    }
    themes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    themes.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  }

  const able = typeof Plotly !== "undefined" && webgl();
  const found = [...document.querySelectorAll(".isorepro-rotatable:not([data-seen])")];
  found.forEach((container) => {
    container.dataset.seen = "";
    if (!able) container.parentElement.classList.add("isorepro-still");
  });
  // Once they are less than a window away, else a page takes long to open where there is no graphics card. One after
  // the other: the browser that allows too few contexts for all takes them from the first figure.
  let shown = Promise.resolve();
  const near = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
    if (!isIntersecting) return;
    near.unobserve(target);
    shown = shown.finally(() => show(target.querySelector(".isorepro-rotatable")));
  }), { rootMargin: "100% 0px" });
  // The figure: what the plots will be in is hidden, which is nowhere.
  if (able) found.forEach((container) => near.observe(container.parentElement));
})();
