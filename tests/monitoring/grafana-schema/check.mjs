// Type-checks classic dashboard JSON files against the types that Grafana publishes, one set per major.
//   node check.mjs FOLDER FILE...
// FOLDER has the node_modules of the package.json beside this file. Each error is one JSON line.
// Types cannot see ids, places, units and queries: the Python tests do.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const folder = path.resolve(process.argv[2]);
const files = process.argv.slice(3);
const ts = createRequire(path.join(folder, 'package.json'))('typescript');

// Kind of panel, with Grafana's own name of its types.
const PANELS = {
  timeseries: 'TimeSeries', stat: 'Stat', bargauge: 'BarGauge', statetimeline: 'StateTimeline', table: 'Table',
};

// Grafana 9 publishes no types per panel: they are put together from its common ones.
const imports9 = `
import type * as D from 'schema9';
type Variable = D.VariableModel & {
  multi: boolean; includeAll: boolean; allValue: string | null; regex: string; definition: string;
  refresh: 0 | 1 | 2; sort: 0 | 1 | 2 | 3 | 4 | 5 | 6; options: unknown[];
  current: { selected: boolean; text: string | string[]; value: string | string[] };
};
namespace timeseries {
  export interface Options { legend: D.VizLegendOptions; tooltip: D.VizTooltipOptions }
  export type FieldConfig = D.GraphFieldConfig;
}
namespace stat {
  export interface Options extends D.SingleStatBaseOptions {
    graphMode: D.BigValueGraphMode; colorMode: D.BigValueColorMode;
    justifyMode: D.BigValueJustifyMode; textMode: D.BigValueTextMode;
  }
}
namespace bargauge {
  export interface Options extends D.SingleStatBaseOptions {
    displayMode: D.BarGaugeDisplayMode; valueMode: D.BarGaugeValueMode; showUnfilled: boolean;
    minVizWidth: number; minVizHeight: number;
  }
}
namespace statetimeline {
  export interface Options extends D.OptionsWithLegend, D.OptionsWithTooltip {
    alignValue: D.TimelineValueAlignment; mergeValues: boolean; rowHeight: number; showValue: D.VisibilityMode;
  }
  export interface FieldConfig extends D.HideableFieldConfig { fillOpacity: number; lineWidth: number }
}
namespace table {
  export interface Options { frameIndex: number; showHeader: boolean; sortBy: D.TableSortByFieldState[] }
  export type FieldConfig = D.TableFieldOptions;
}`;

const imports = (dashboard, panel) => `
import type * as D from '${dashboard}';
type Variable = D.VariableModel & { definition: string };
${Object.entries(PANELS).map(([kind, name]) => `import type * as ${kind} from '${panel(kind, name)}';`).join('\n')}`;

const imports10 = (schema) => imports(`${schema}/dist/esm/raw/dashboard/x/dashboard_types.gen`,
  (kind, name) => `${schema}/dist/esm/raw/composable/${kind}/panelcfg/x/${name}PanelCfg_types.gen`);
const imports12 = (schema) => imports(`${schema}/dist/types/raw/dashboard/x/types.gen`,
  (kind) => `${schema}/dist/types/raw/composable/${kind}/panelcfg/x/types.gen`);

// What a check imports, and the index that the schema's own files mean by '@grafana/schema'.
const GRAFANA = {
  9: [imports9, 'schema9/dist/index.d.ts'],
  10: [imports10('schema10'), 'schema10/dist/index.d.ts'],
  11: [imports10('schema11'), 'schema11/dist/cjs/index.d.cts'],
  12: [imports12('schema12'), 'schema12/dist/types/index.d.ts'],
  13: [imports12('schema13'), 'schema13/dist/types/index.d.ts'],
};

const SHAPES = `
// A type as it looks in JSON: enums are their literals, and Grafana fills in what is left out.
type J<T> = unknown extends T ? T
  : T extends string ? \`\${T}\`
  : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? J<U>[]
  : { [K in keyof T]?: J<T[K]> };
type Must<T, K extends keyof T> = T & { [P in K]-?: NonNullable<T[P]> };

interface Thresholds { mode: 'absolute' | 'percentage'; steps: { color: string; value: number | null }[] }
type Field<C> = Omit<J<D.FieldConfig>, 'custom' | 'thresholds'> & { thresholds?: Thresholds; custom?: C };
type Property<C> = { [K in keyof Omit<Field<C>, 'custom'>]-?: { id: K; value: Field<C>[K] } }[keyof Omit<Field<C>, 'custom'>]
  | { [K in keyof C & string]-?: { id: \`custom.\${K}\`; value: C[K] } }[keyof C & string];
interface Override<C> { matcher: { id: 'byName' | 'byRegexp'; options: string }; properties: Property<C>[] }
interface Target {
  refId: string; datasource: { type: string; uid: string }; expr: string; legendFormat?: string;
  instant?: boolean; range?: boolean; hide?: boolean; interval?: string; exemplar?: boolean; format?: string; editorMode?: string;
}

type Dashboard = Must<Omit<J<D.Dashboard>, 'panels' | 'templating'>, 'title' | 'schemaVersion'>
  & { templating?: { list: Must<J<Variable>, 'name' | 'type'>[] } };
type Row = Must<Omit<J<D.RowPanel>, 'panels'>, 'id' | 'title' | 'gridPos'>;
type AnyPanel = Must<Omit<J<D.Panel>, 'options' | 'fieldConfig' | 'targets'>, 'id' | 'type' | 'title' | 'gridPos'>;
type Panel<O, C> = AnyPanel & { options: J<O>; targets: Target[]; fieldConfig: { defaults: Field<C>; overrides: Override<C>[] } };
type Of = {
  row: Row;
  timeseries: Panel<timeseries.Options, J<timeseries.FieldConfig>>;
  stat: Panel<stat.Options, {}>;
  bargauge: Panel<bargauge.Options, {}>;
  statetimeline: Panel<statetimeline.Options, J<statetimeline.FieldConfig>>;
  table: Panel<table.Options, J<table.FieldConfig>>;
};
`;

// One variable per part of a file; its comment is how an error names the part.
function declarations(file) {
  const { panels = [], templating, ...rest } = JSON.parse(fs.readFileSync(file, 'utf8'));
  const flat = panels.flatMap(({ panels: inner, ...panel }) => [panel, ...(inner ?? [])]);
  const parts = [['Dashboard', 'dashboard', { ...rest, templating }]];
  for (const panel of flat) {
    const kind = panel.type.replace('-', '');
    if (kind === 'row' || kind in PANELS) {
      parts.push([`Of['${kind}']`, `panel ${panel.id}`, panel]);
    } else { // a panel of somebody else's kind
      const { options, fieldConfig, targets, ...common } = panel;
      parts.push(['AnyPanel', `panel ${panel.id}`, common]);
    }
  }
  return parts.map(([type, part, value]) => ({ file, part, type, text: JSON.stringify(value, null, 1) }));
}

const all = files.flatMap(declarations);
for (const [grafana, [header, index]] of Object.entries(GRAFANA)) {
  const source = path.join(folder, `check${grafana}.ts`);
  fs.writeFileSync(source, header + SHAPES
    + all.map(({ type, text }, i) => `export const part${i}: ${type} = ${text};\n`).join(''));
  const program = ts.createProgram([source], {
    strict: true, noEmit: true, skipLibCheck: true, types: [], lib: ['lib.es2022.d.ts', 'lib.dom.d.ts'],
    module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler,
    baseUrl: path.join(folder, 'node_modules'), paths: { '@grafana/schema': [index] },
  });
  const read = program.getSourceFile(source);
  for (const found of ts.getPreEmitDiagnostics(program)) {
    const here = found.file === read; // else it is about the types themselves
    const before = here ? read.text.slice(0, read.text.indexOf('\n', found.start)) : '';
    const number = [...before.matchAll(/^export const part(\d+)/gm)].at(-1)?.[1];
    const line = before.slice(before.lastIndexOf('\n') + 1).trim();
    console.log(JSON.stringify({
      grafana, file: all[number]?.file, part: all[number]?.part, line,
      message: ts.flattenDiagnosticMessageText(found.messageText, ' ').slice(0, 400),
    }));
  }
}
