// What every page does: it keeps its live parts fresh, and its buttons work.

import "./actions.js";
import { connect } from "./live.js";

connect();
