// Updates a part of the page in place.

// Makes the children of `old` equal to those of `fresh`, keeping each element that stays what it is: with it stay the
// keyboard focus, the selection and the scroll position. Elements with an id are matched by it, others by place.
export function morph(old, fresh) {
  const wanted = new Set(Array.from(fresh.children, (each) => each.id));
  const known = new Map();
  for (const each of [...old.children]) {
    if (!each.id) continue;
    if (wanted.has(each.id)) known.set(each.id, each);
    else each.remove();
  }
  let place = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const found = next.id ? known.get(next.id) : place;
    if (found && !(found.id && !next.id) && found.nodeName === next.nodeName) {
      if (found === place) place = place.nextSibling;
      else old.insertBefore(found, place);
      update(found, next);
    } else {
      old.insertBefore(next, place);
    }
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

function update(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.data = fresh.data;
    return;
  }
  if ("keep" in old.dataset) return; // a script fills it
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morph(old, fresh);
}
