// Lets the reader move a weight or a radius through the figures of isorepro.explorables. The drawing in a figure
// stays where this fails.
(() => {
  const HELD = "var(--isorepro-0063a6,#0063a6)", FOOLED = "var(--isorepro-c0430a,#c0430a)";
  const MUTED = "var(--isorepro-56616d,#56616d)", GRID = "var(--isorepro-d9dee4,#d9dee4)";
  const PAPER = "var(--isorepro-ffffff,#ffffff)";
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  const drawn = (tag, attributes = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const radius = (epsilon) => String(Number(epsilon.toPrecision(3)));

  // A range over named stops; tells the place of the one chosen.
  function slider(label, stops, start, moved) {
    const output = element("output", { textContent: stops[start] });
    const input = element("input", { type: "range", min: 0, max: stops.length - 1, step: 1 });
    input.value = start; // after its limits, which would cut it
    input.setAttribute("aria-valuetext", stops[start]);
    input.addEventListener("input", () => {
      output.textContent = stops[input.value];
      input.setAttribute("aria-valuetext", stops[input.value]);
      moved(Number(input.value));
    });
    return element("label", { className: "isorepro-slider" }, element("span", { textContent: label }), input, output);
  }

  // Buttons of which one is pressed; tells its place.
  function choice(label, names, start, chosen) {
    const row = element("div", { className: "isorepro-choice" });
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", label);
    const buttons = names.map((textContent, place) => element("button", {
      type: "button", textContent,
      onclick: () => {
        buttons.forEach((button, other) => button.setAttribute("aria-pressed", other === place));
        chosen(place);
      },
    }));
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", place === start));
    row.append(`${label}:`, ...buttons);
    return row;
  }

  // Goes from the numbers shown to others within a moment.
  function glide(draw) {
    let shown, frame;
    return (target) => {
      cancelAnimationFrame(frame);
      if (!shown || still.matches) return draw((shown = target));
      const [from, begun] = [shown, performance.now()];
      const step = (now) => {
        const part = Math.min(1, Math.max(0, (now - begun) / 350));
        const eased = part * part * (3 - 2 * part);
        draw((shown = part < 1 ? from.map((value, place) => value + eased * (target[place] - value)) : target));
        if (part < 1) frame = requestAnimationFrame(step);
      };
      frame = requestAnimationFrame(step);
    };
  }

  function chart(data) {
    const { radii, chance, limit } = data;
    const [width, height, left, right, top, bottom] = [430, 300, 48, 8, 8, 42];
    const [low, high] = [radii[0] / 1.1, radii.at(-1) * 1.1];
    const x = (epsilon) => left + (Math.log(epsilon / low) / Math.log(high / low)) * (width - left - right);
    const y = (rate) => top + (1.02 - rate) / 1.04 * (height - top - bottom);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const text = (content, place, more = {}) => {
      const made = drawn("text", { ...place, ...more });
      made.textContent = content;
      svg.append(made);
    };
    if (limit < high) svg.append(drawn("rect", {
      x: x(limit), width: width - right - x(limit), y: top, height: height - top - bottom, fill: GRID, opacity: 0.55,
    }));
    for (const rate of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
      svg.append(drawn("line", { x1: left, x2: width - right, y1: y(rate), y2: y(rate), stroke: GRID }));
      text(rate.toFixed(1), { x: left - 6, y: y(rate) + 4 }, { "text-anchor": "end" });
    }
    for (const epsilon of [0.01, 0.03, 0.1, 0.3, 1].filter((tick) => low < tick && tick < high)) {
      svg.append(drawn("line", { x1: x(epsilon), x2: x(epsilon), y1: top, y2: height - bottom, stroke: GRID }));
      text(String(epsilon), { x: x(epsilon), y: height - bottom + 16 }, { "text-anchor": "middle" });
    }
    const dotted = { stroke: MUTED, "stroke-dasharray": "1 3" };
    svg.append(drawn("line", { x1: left, x2: width - right, y1: y(chance), y2: y(chance), ...dotted }));
    text("chance", { x: left + 4, y: y(chance) - 4 }, { fill: MUTED, "font-size": 11 });
    text("ε, L∞ radius on pixels in [0, 1]", { x: (left + width - right) / 2, y: height - 6 }, { "text-anchor": "middle" });
    text("classification rate", { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)` }, { "text-anchor": "middle" });
    const lines = data.protocols[0].attacks.flatMap((_, attack) => [FOOLED, HELD].map((colour) => {
      const band = drawn("path", { fill: colour, opacity: 0.16 });
      const line = drawn("path", { fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": attack ? "7 3" : "none" });
      svg.append(band, line);
      return { band, line };
    }));
    // Numbers: for each line, for each radius: mean, low, high.
    const draw = (numbers) => lines.forEach(({ band, line }, place) => {
      const row = numbers.slice(3 * radii.length * place, 3 * radii.length * (place + 1));
      const path = (part) => radii.map((epsilon, k) => `${x(epsilon).toFixed(1)} ${y(row[3 * k + part]).toFixed(1)}`);
      line.setAttribute("d", `M${path(0).join("L")}`);
      band.setAttribute("d", `M${path(1).join("L")}L${path(2).reverse().join("L")}Z`);
    });
    const sample = (colour, dash) => drawn("svg", { viewBox: "0 0 32 8", "aria-hidden": "true" },
      drawn("line", { x1: 0, x2: 32, y1: 4, y2: 4, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
    const key = (weight, attacks) => attacks.flatMap((attack, place) => {
      const dash = place ? "7 3" : "none";
      const entry = (colour, name) => element("span", {}, sample(colour, dash), `${name}, ${attack}`);
      return weight ? [entry(FOOLED, data.weights[0]), entry(HELD, data.weights[weight])] : [entry(FOOLED, data.weights[0])];
    });
    const go = glide(draw);
    return {
      svg, key,
      show: (protocol, weight) => {
        const curves = data.curves[protocol];
        go(curves.flatMap((attack) => [attack[0], attack[weight]].flat(2)));
        const names = data.protocols[protocol];
        svg.setAttribute("aria-label", `Classification rate against epsilon, ${names.name}: ${names.attacks.join(" and ")} on networks of ${data.weights[weight]} and of ${data.weights[0]}`);
      },
    };
  }

  function map({ classes, palette, of, points }) {
    const size = 300;
    const places = points.map((text) => {
      const numbers = new Uint16Array(bytes(text).buffer);
      return Array.from(numbers, (value, place) => 12 + (value / 65535) * (size - 24)).map((value, place) => (place % 2 ? size - value : value));
    });
    const svg = drawn("svg", { viewBox: `0 0 ${size} ${size}`, role: "img" });
    svg.append(drawn("rect", { x: 0.5, y: 0.5, width: size - 1, height: size - 1, fill: "none", stroke: GRID }));
    const dots = of.map((place) => drawn("circle", { r: 1.9, fill: palette[place], opacity: 0.8 }));
    const names = classes.map((name) => {
      const made = drawn("text", { "text-anchor": "middle", "font-weight": 700, "font-size": 15, stroke: PAPER, "stroke-width": 2, "paint-order": "stroke" });
      made.textContent = name;
      return made;
    });
    svg.append(...dots, ...names);
    const median = (values) => values.sort((one, other) => one - other)[values.length >> 1];
    const go = glide((numbers) => {
      dots.forEach((dot, place) => {
        dot.setAttribute("cx", numbers[2 * place].toFixed(1));
        dot.setAttribute("cy", numbers[2 * place + 1].toFixed(1));
      });
      names.forEach((name, label) => {
        const own = [...of.keys()].filter((place) => of[place] === label);
        name.setAttribute("x", median(own.map((place) => numbers[2 * place])).toFixed(1));
        // Above the middle, so that it hides no small cluster.
        name.setAttribute("y", (median(own.map((place) => numbers[2 * place + 1])) - 7).toFixed(1));
      });
    });
    return { svg, show: (weight, name) => {
      go(places[weight]);
      svg.setAttribute("aria-label", `Map of the representation, ${name}: ${of.length} images coloured by class`);
    } };
  }

  // Paints grey pixels, or what "colour" makes of a pixel's place.
  function paint(canvas, side, colour) {
    canvas.width = canvas.height = side;
    const image = new ImageData(side, side);
    for (let place = 0; place < side * side; place++) image.data.set([...colour(place), 255], 4 * place);
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function byWeight(container, data) {
    const figure = container.parentElement;
    const [board, said] = [element("div", { className: "isorepro-board" }), element("p", { className: "isorepro-said" })];
    const key = element("div", { className: "isorepro-lines" });
    said.setAttribute("aria-live", "polite");
    const curves = chart(data);
    board.append(element("div", {}, key, curves.svg));
    const places = data.map && map(data.map);
    if (places) board.append(places.svg);
    else board.classList.add("isorepro-alone");
    const pictures = element("div", { className: "isorepro-images" });
    const cells = (data.images?.labels ?? []).map(() => {
      const cell = { canvas: element("canvas"), name: element("span") };
      pictures.append(element("div", {}, cell.canvas, cell.name));
      return cell;
    });
    const pixels = data.images?.pixels.map(bytes);
    let [protocol, weight] = [data.protocols.length - 1, data.start];

    const show = () => {
      const { name, attacks } = data.protocols[protocol];
      curves.show(protocol, weight);
      key.replaceChildren(...curves.key(weight, attacks));
      places?.show(weight, data.weights[weight]);
      const rates = attacks.map((attack, place) => {
        const [own, plain] = [weight, 0].map((which) => data.curves[protocol][place][which][data.at][0]);
        return `${attack} leaves ${percent(own)}${weight ? ` (${data.weights[0]}: ${percent(plain)})` : ""}`;
      });
      let fooled = 0;
      cells.forEach(({ canvas, name: text }, place) => {
        const { side, labels, taken } = data.images;
        paint(canvas, side, (at) => Array(3).fill(pixels[weight][place * side * side + at]));
        const kept = taken[weight][place] === labels[place];
        fooled += !kept;
        text.textContent = kept ? labels[place] : `${labels[place]} → ${taken[weight][place]}`;
        text.style.color = kept ? HELD : FOOLED;
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `Attacked ${labels[place]}, taken for ${taken[weight][place]}`);
      });
      const images = cells.length ? ` PGD at ε = ${data.images.epsilon} fools the network of the images on ${fooled} of ${cells.length}.` : "";
      said.textContent = `${data.weights[weight]}, ${name}, at ε = ${radius(data.radii[data.at])}: ${rates.join("; ")}.${images}`;
    };

    const moving = slider("Weight β of the isometry term", data.weights, weight, (place) => ((weight = place), show()));
    const parts = [moving, board, ...(cells.length ? [pictures] : []), said];
    const names = [...(data.overview ? [data.overview] : []), ...data.protocols.map((one) => one.name)];
    const choose = (place) => {
      protocol = place - (names.length - data.protocols.length);
      const sliding = protocol >= 0;
      figure.classList.toggle("isorepro-slides", sliding);
      parts.forEach((part) => (part.hidden = !sliding));
      if (sliding) show();
    };
    const start = data.overview ? 0 : names.length - 1;
    container.append(choice("Protocol", names, start, choose), ...parts);
    choose(start);
  }

  function byRadius(container, data) {
    const { radii, labels, classes, side, networks, colours } = data;
    const images = networks.map((network) => bytes(network.images));
    const area = side * side;
    const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    const [darker, lighter] = [rgb(colours.darker), rgb(colours.lighter)];
    const pair = element("div", { className: "isorepro-pair" });
    const said = element("p", { className: "isorepro-said" });
    said.setAttribute("aria-live", "polite");
    let [chosen, step, other] = [Math.min(3, labels.length - 1), Math.min(5, radii.length - 1), 1];

    const sides = [0, 1].map(() => {
      const parts = { title: element("p"), image: element("canvas"), change: element("canvas"), bars: element("div", { className: "isorepro-bars" }) };
      const under = (canvas, text) => element("div", {}, element("p", { textContent: text }), canvas);
      const look = element("div", { className: "isorepro-look" }, under(parts.image, "attacked image"),
        under(parts.change, "change of each pixel"), element("div", {}, element("p", { textContent: "probability of each class" }), parts.bars));
      pair.append(element("div", {}, parts.title, look));
      return parts;
    });

    const show = () => {
      const words = [0, other].map((which, place) => {
        const { title, image, change, bars } = sides[place];
        const { name, probabilities } = networks[which];
        const [clean, now] = [chosen, step * labels.length + chosen].map((at) => images[which].subarray(at * area, (at + 1) * area));
        const shares = probabilities[step][chosen];
        const taken = shares.indexOf(Math.max(...shares));
        const kept = classes[taken] === labels[chosen];
        title.textContent = `${name}: takes it for ${classes[taken]}`;
        title.style.color = kept ? HELD : FOOLED;
        paint(image, side, (at) => [now[at], now[at], now[at]]);
        const reach = 255 * radii[step] || 1;
        paint(change, side, (at) => {
          const part = Math.max(-1, Math.min(1, (now[at] - clean[at]) / reach));
          return (part < 0 ? darker : lighter).map((value) => 255 + Math.abs(part) * (value - 255));
        });
        for (const [canvas, what] of [[image, `Attacked ${labels[chosen]}`], [change, "Change: blue lighter, orange darker"]]) {
          canvas.setAttribute("role", "img");
          canvas.setAttribute("aria-label", `${what}, ${name}, epsilon ${radius(radii[step])}`);
        }
        bars.replaceChildren(...shares.flatMap((share, place) => {
          const bar = element("i");
          bar.style.width = `${100 * share}%`;
          bar.style.background = classes[place] === labels[chosen] ? HELD : FOOLED;
          const number = element(place === taken ? "b" : "span", { textContent: `${Math.round(100 * share)} %` });
          return [element(place === taken ? "b" : "span", { textContent: classes[place] }), bar, number];
        }));
        return `${name} takes it for ${classes[taken]} with ${Math.round(100 * shares[taken])} %`;
      });
      said.textContent = `A ${labels[chosen]}, every pixel moved by at most ${radius(radii[step])}: ${words.join("; ")}.`;
    };

    const controls = [
      choice("Image", labels, chosen, (place) => ((chosen = place), show())),
      slider("Radius ε of the attack", radii.map(radius), step, (place) => ((step = place), show())),
    ];
    if (networks.length > 2) controls.push(choice("Beside CE", networks.slice(1).map((one) => one.name), 0, (place) => ((other = place + 1), show())));
    container.append(...controls, pair, said);
    show();
    container.parentElement.classList.add("isorepro-slides");
  }

  document.querySelectorAll(".isorepro-explorable:not([data-seen])").forEach((container) => {
    container.dataset.seen = "";
    const data = JSON.parse(container.querySelector("script").textContent);
    try {
      (data.kind === "weight" ? byWeight : byRadius)(container, data);
      container.hidden = false;
    } catch (error) { // back to the drawing
      console.error(error);
      container.parentElement.classList.remove("isorepro-slides");
      container.replaceChildren();
    }
  });
})();
