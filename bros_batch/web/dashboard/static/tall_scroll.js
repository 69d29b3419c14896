// A scroll position over more rows than an element can be high.
//
// Browsers limit the height of an element to some tens of millions of pixels. Beyond MAX_HEIGHT, a small movement scrolls
// by as many pixels as it says, and a large one, such as a drag of the scroll bar, goes to the same part of the whole.

const MAX_HEIGHT = 8_000_000;

export class TallScroll {
  constructor(scroller, rowHeight) {
    Object.assign(this, { scroller, rowHeight, rows: 0, offset: 0, seen: 0 });
  }

  // The height of the scrolled element, and what it would be without a limit.
  get height() {
    return Math.min(this.wholeHeight, MAX_HEIGHT);
  }

  get wholeHeight() {
    return this.rows * this.rowHeight;
  }

  // How far down the whole the view is, in pixels.
  get top() {
    return Math.max(0, Math.min(this.scroller.scrollTop + this.offset, this.wholeHeight - this.room));
  }

  get room() {
    return this.scroller.clientHeight;
  }

  // Takes note of a movement of the scroller.
  moved() {
    const { scrollTop } = this.scroller;
    const isJump = Math.abs(scrollTop - this.seen) > this.room;
    this.seen = scrollTop;
    if (this.wholeHeight <= MAX_HEIGHT) this.offset = 0;
    else if (isJump || scrollTop <= 0 || scrollTop >= this.height - this.room - 1) {
      const part = scrollTop / Math.max(1, this.height - this.room);
      this.offset = part * (this.wholeHeight - this.room) - scrollTop;
    }
  }

  // Goes to a position in the whole, and puts the scroll bar where it belongs.
  goTo(top) {
    const wanted = Math.max(0, Math.min(top, this.wholeHeight - this.room));
    if (this.wholeHeight <= MAX_HEIGHT) {
      this.scroller.scrollTop = wanted;
      this.offset = 0;
    } else {
      this.scroller.scrollTop = (wanted / (this.wholeHeight - this.room)) * (this.height - this.room);
      this.offset = wanted - this.scroller.scrollTop;
    }
    this.seen = this.scroller.scrollTop;
  }

  // After a rest: puts the scroll bar where it belongs, without moving what is seen.
  settle() {
    if (this.wholeHeight > MAX_HEIGHT) this.goTo(this.top);
  }
}
