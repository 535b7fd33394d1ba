"""How the page looks: one column of text, charts in columns where they fit, light or dark as the device is."""

STYLE = """
:root{--paper:#fcfcfb;--ink:#1c1f23;--soft:#5b636d;--line:#dfe2e6;--card:#f3f4f5;--pass:#20703a;--fail:#b3261e;
--s0:#66707c;--s1:#c8413b;--s2:#0b6fa4;--s3:#b67700;--s4:#7a4fb5;--s5:#2b7d4f}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e8eaec;--soft:#a3abb5;--line:#343a41;--card:#1e2226;
--pass:#6cc989;--fail:#ff8a80;--s0:#9aa5b1;--s1:#ff7d73;--s2:#58b7ee;--s3:#e8b04a;--s4:#bb9af0;--s5:#6fcb96}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1100px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:21px;margin:52px 0 4px;letter-spacing:-.005em}
h3{font-size:16px;margin:18px 0 2px}
.lead{font-size:18px;color:var(--soft);margin:0 0 24px;max-width:70ch}
.note{color:var(--soft);margin:0 0 14px;max-width:75ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0}
.tiles div{background:var(--card);border-radius:8px;padding:12px 14px;display:flex;flex-direction:column}
.tiles dt{font-size:13.5px;line-height:1.35;color:var(--soft)}
.tiles dd{margin:auto 0 0;padding-top:4px;font-size:22px;font-weight:600;line-height:1.25;
font-variant-numeric:tabular-nums}
.columns{display:grid;align-items:start;gap:28px 36px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.columns>div{min-width:0}
figure{margin:0 0 10px;max-width:560px}
figcaption{font-weight:600;margin-bottom:2px}
figure>svg{display:block;width:100%;height:auto}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;margin:4px 0 6px;padding:0;font-size:14px}
.legend li{display:flex;align-items:center;gap:7px}
.legend svg{flex:none}
.wide{overflow-x:auto;margin:6px 0 0}
table{border-collapse:collapse;font-size:14.5px;font-variant-numeric:tabular-nums}
th,td{padding:6px 9px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child{text-align:left;padding-left:0;white-space:normal;min-width:7em}
thead th{color:var(--soft);font-weight:500;white-space:normal;vertical-align:bottom}
tbody th{font-weight:500}
td small{display:block;color:var(--soft);font-size:12px;line-height:1.3}
.checks :is(td,th):nth-child(3),.reasons :is(td,th){text-align:left}
.reasons td:last-child{white-space:normal;min-width:22em}
.pass{color:var(--pass);font-weight:600}
.fail{color:var(--fail);font-weight:600}
svg text{font-family:inherit;font-size:12px;fill:var(--soft)}
svg .name{font-size:12.5px}
svg .cell{fill:var(--ink);font-variant-numeric:tabular-nums}
.grid{stroke:var(--line);stroke-width:1}
.ref{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.whisker{stroke-width:1.4;opacity:.55}
.s0{stroke:var(--s0);color:var(--s0)}.s1{stroke:var(--s1);color:var(--s1)}.s2{stroke:var(--s2);color:var(--s2)}
.s3{stroke:var(--s3);color:var(--s3)}.s4{stroke:var(--s4);color:var(--s4)}.s5{stroke:var(--s5);color:var(--s5)}
.fill{fill:currentColor;stroke:none}
@media (max-width:520px){main{padding:24px 16px 48px}h1{font-size:25px}
.lead{font-size:16.5px}
.tiles{grid-template-columns:repeat(2,1fr)}.tiles dd{font-size:19px}th,td{padding:5px 7px}}
@media print{main{max-width:none;padding:0}}
"""
