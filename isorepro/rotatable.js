// Lets the reader rotate the figures of isorepro.plots.rotatable. The drawing in a figure stays where this fails.
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

  const config = {
    displaylogo: false, displayModeBar: false, responsive: true, scrollZoom: false,
    plotlyServerURL: "", typesetMath: false,
  };

  async function show(container) {
    const data = JSON.parse(container.querySelector("script").textContent);
    const figure = container.parentElement;
    const plots = [];
    const themes = new MutationObserver(() => {
      const template = theme(container, data.theme);
      plots.forEach((plot, place) => {
        const fresh = layout(data.spaces[place], data, template);
        fresh.scene.camera = plot._fullLayout.scene._scene.getCamera(); // as the reader turned it
        Plotly.relayout(plot, fresh);
      });
    });
    const fail = (error) => { // back to the drawing
      if (error) console.error(error);
      themes.disconnect();
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

    const choose = (number) => {
      const colouring = data.colourings[number];
      const buttons = [...choice.querySelectorAll("button")];
      buttons.forEach((button, place) => button.setAttribute("aria-pressed", place === number));
      legend.replaceChildren(key(colouring));
      plots.forEach((plot, place) => {
        const space = data.spaces[place];
        const label = `${space.title}: ${space.x.length} points in a box to rotate, coloured by ${colouring.name}`;
        plot.setAttribute("aria-label", label);
        const [color, text] = [marker(space, colouring, number), hover(space, colouring, number)];
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
      for (const space of data.spaces) {
        const box = element("div", "isorepro-space", space.title);
        const plot = element("div", "isorepro-plot");
        plot.setAttribute("role", "img");
        box.append(plot);
        grid.append(box);
        const { x, y, z } = space;
        const dots = { size: 3, line: { width: 0 }, opacity: 1 }; // their colours: see choose
        const trace = { type: "scatter3d", mode: "markers", x, y, z, marker: dots, hoverinfo: "text" };
        sharedGestures(plot);
        plots.push(plot);
        await Plotly.newPlot(plot, [trace], layout(space, data, template), config);
        plot.on("plotly_webglcontextlost", () => fail());
      }
      choose(0);
      figure.classList.add("isorepro-turns");
    } catch (error) {
      return fail(error);
    }
    themes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    themes.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  }

  const able = typeof Plotly !== "undefined" && webgl();
  document.querySelectorAll(".isorepro-rotatable:not([data-seen])").forEach((container) => {
    container.dataset.seen = "";
    if (able) show(container);
    else container.parentElement.classList.add("isorepro-still");
  });
})();
