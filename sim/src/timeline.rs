//! A seed as one page that stands on its own: a lane per actor, a mark per event, faults and the
//! violation in colour; zoom with the wheel, filter by text.

use crate::plan::Plan;
use crate::replay;
use crate::run::Outcome;

/// The page.
pub(crate) fn page(plan: &Plan, outcome: &Outcome) -> String {
    // `<` is escaped so that no text can end the script it stands in.
    let lines = serde_json::to_string(&outcome.lines).unwrap_or_default().replace('<', "\\u003c");
    let summary = replay::summary(plan, outcome).replace('&', "&amp;").replace('<', "&lt;");
    PAGE.replace("SUMMARY", &summary).replace("LINES", &lines)
}

const PAGE: &str = r##"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pointsman: a world</title>
<style>
body{font:13px system-ui,sans-serif;margin:12px;color:#222;background:#fff}
pre{white-space:pre-wrap}
#lanes{position:relative;border:1px solid #ccc;overflow:hidden;cursor:grab;touch-action:none}
.lane{position:absolute;left:0;right:0;height:22px;border-bottom:1px solid #eee}
.name{position:absolute;left:4px;top:3px}
.line{position:absolute;top:0;bottom:0;width:1px;background:#cc0000;pointer-events:none}
.bar{position:absolute;top:9px;height:4px;background:#cdd9e5}
.mark{position:absolute;top:4px;width:3px;height:14px;background:#4477aa}
.fault{background:#ee7733}.operator{background:#aa3377}.violation{background:#cc0000;width:6px;height:20px;top:1px}
table{border-collapse:collapse;margin-top:8px}td{padding:1px 8px;vertical-align:top;white-space:pre-wrap}td:nth-child(-n+2){white-space:nowrap}
tr.violation{background:#fdd;width:auto;height:auto}tr.near{background:#ffd}
</style></head><body>
<pre>SUMMARY</pre>
<label>Filter <input id="filter" placeholder="client 3, call 12, ..."></label>
<span id="shown"></span> <small>wheel: zoom; drag: move; click a mark: jump to its line</small>
<div id="lanes"></div><table id="rows"></table>
<script>
"use strict";
const lines=LINES;
const lanes=document.getElementById("lanes"),rows=document.getElementById("rows"),filter=document.getElementById("filter");
const end=Math.max(1,...lines.map(l=>l.at));
let from=0,to=end;
const gutter=110,margin=16;
const place=at=>`calc(${gutter}px + (100% - ${gutter+margin}px) * ${(at-from)/Math.max(1,to-from)})`;
const width=()=>lanes.clientWidth-gutter-margin;
const kind=l=>l.text.startsWith("VIOLATION")?"violation":/^[a-z0-9]+(-[a-z0-9]+)+$|^(refuse|delay|stall|garbage|fragment|partition|crash|restart|pause|reload)$/.test(l.text)?"fault":l.actor==="operator"?"operator":"";
const isClient=actor=>actor.startsWith("client");
const time=n=>(n/1e9).toFixed(6);
function draw(){
 const text=filter.value.toLowerCase();
 const chosen=lines.map((l,i)=>[l,i]).filter(([l])=>!text||(l.actor+" "+l.text).toLowerCase().includes(text));
 const inView=chosen.filter(([l])=>l.at>=from&&l.at<=to);
 const actors=[...new Set(chosen.map(([l])=>l.actor))].sort((a,b)=>isClient(a)-isClient(b)||a.localeCompare(b,"en",{numeric:true}));
 lanes.replaceChildren();rows.replaceChildren();
 lanes.style.height=Math.max(1,actors.length)*23+"px";
 const laneOf=new Map();
 actors.forEach((a,i)=>{const d=document.createElement("div");d.className="lane";d.style.top=i*23+"px";
  const n=document.createElement("span");n.className="name";n.textContent=a;d.append(n);lanes.append(d);laneOf.set(a,d);
  const own=inView.filter(([l])=>l.actor===a);
  if(isClient(a)&&own.length>1){const b=document.createElement("div");b.className="bar";
   b.style.left=place(own[0][0].at);b.style.right=`calc(100% - ${place(own[own.length-1][0].at)})`;d.append(b)}});
 for(const [l,i] of inView){const m=document.createElement("div");m.className="mark "+kind(l);
  m.style.left=place(l.at);m.title=time(l.at)+" "+l.text;
  m.onclick=()=>{const r=document.getElementById("r"+i);if(r){r.scrollIntoView({block:"center"});r.classList.add("near")}};
  laneOf.get(l.actor).append(m);
  if(kind(l)==="violation"){const v=document.createElement("div");v.className="line";v.style.left=place(l.at);lanes.append(v)}}
 for(const [l,i] of inView.slice(0,3000)){const r=rows.insertRow();r.id="r"+i;if(kind(l)==="violation")r.className="violation";
  for(const t of [time(l.at),l.actor,l.text])r.insertCell().textContent=t}
 document.getElementById("shown").textContent=inView.length+" of "+lines.length+" lines, "+time(from)+" to "+time(to)+" s";
}
lanes.onwheel=e=>{e.preventDefault();const x=e.clientX-lanes.getBoundingClientRect().left-gutter,at=from+(to-from)*Math.min(1,Math.max(0,x/width()));
 const f=e.deltaY>0?1.25:0.8;from=Math.max(0,at-(at-from)*f);to=Math.min(end,at+(to-at)*f);draw()};
let drag=null;
lanes.onpointerdown=e=>{drag={x:e.clientX,from,to}};
window.onpointerup=()=>{drag=null};
window.onpointermove=e=>{if(!drag)return;const by=(drag.x-e.clientX)/width()*(drag.to-drag.from);
 const shift=Math.max(-drag.from,Math.min(end-drag.to,by));from=drag.from+shift;to=drag.to+shift;draw()};
filter.oninput=draw;draw();
</script></body></html>
"##;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;
    use crate::streams::Seed;

    #[test]
    fn the_page_stands_on_its_own_and_no_text_ends_its_script() {
        let plan = scenario::plan(Seed(3), None);
        let mut outcome = replay::replay(&plan);
        outcome.lines[0].text = "</script><b>".to_owned();
        let page = page(&plan, &outcome);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(!page.contains("src=") && !page.contains("href="));
    }
}
