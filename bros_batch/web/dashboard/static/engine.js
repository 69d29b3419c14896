// The engine page: the time that its charts show is in the URL.

import { showOnClick } from "./live.js";
import "./page.js";

showOnClick();
