import { printMesh, printSharding } from './sharding.ts';
import { printType } from './types.ts';
import type { Donation, Operation, Program, Region, Value } from './types.ts';

/**
 * A program as MLIR text in generic form, the form every StableHLO parser reads. Operations that no result depends on
 * are left out. Source: openxla.org/stablehlo/spec#programs; mlir.llvm.org/docs/LangRef/#operations.
 */
export function printProgram({ name, body, donations, shardings }: Program): string {
  const others = shardings === undefined || shardings.leading.size === 0 ? 0 : 1;
  const parameters = body.parameters.map((parameter, index) => {
    const donation = donations[index];
    const sharding = shardings?.parameters[index];
    return `%${parameter.id}: ${printType(parameter)}${printAttributes([
      donation && printDonation(donation),
      sharding &&
        printSharding(sharding, parameter.shape.length, shardings.leading.has(index) ? 0 : others),
    ])}`;
  });
  const results = body.results.map(printType).join(', ');
  const declared = body.results.map((result, index) => {
    const sharding = shardings?.results[index];
    return (
      printType(result) +
      printAttributes([sharding && printSharding(sharding, result.shape.length, others)])
    );
  });
  const lines = [
    `module @${symbol(name)} {`,
    ...(shardings === undefined ? [] : [printMesh(shardings.mesh)]),
    `func.func public @main(${parameters.join(', ')}) -> (${declared.join(', ')}) {`,
  ];
  for (const operation of liveOperations(body)) printOperation(operation, lines);
  if (body.results.length > 0) lines.push(`return ${names(body.results)} : ${results}`);
  else lines.push('return');
  lines.push('}', '}', '');
  return lines.join('\n');
}

/** A module name may hold letters, digits and underscores. */
function symbol(name: string): string {
  return name.replace(/[^A-Za-z0-9_]/g, '_').replace(/^(?=[0-9])|^$/, '_');
}

function printDonation(donation: Donation): string {
  return donation === 'donor'
    ? 'jax.buffer_donor = true'
    : `tf.aliasing_output = ${donation.aliasOf} : i32`;
}

function printAttributes(attributes: readonly (string | undefined)[]): string {
  const given = attributes.filter((attribute) => attribute !== undefined);
  return given.length === 0 ? '' : ` {${given.join(', ')}}`;
}

/** The operations that some result depends on, in order. */
export function liveOperations(region: Region): Operation[] {
  const used = new Set(region.results.map((value) => value.id));
  const live: Operation[] = [];
  for (const operation of region.operations.toReversed()) {
    if (!operation.results.some((result) => used.has(result.id))) continue;
    live.push(operation);
    for (const operand of operation.operands) used.add(operand.id);
    // A body may use values of the block around it.
    for (const inner of operation.regions) markUsed(inner, used);
  }
  return live.reverse();
}

function markUsed(region: Region, used: Set<number>): void {
  for (const result of region.results) used.add(result.id);
  for (const operation of region.operations) {
    for (const operand of operation.operands) used.add(operand.id);
    for (const inner of operation.regions) markUsed(inner, used);
  }
}

function printOperation(operation: Operation, lines: string[]): void {
  const { name, operands, attributes, regions, results } = operation;
  const outputs = results.map((result) => printType(result)).join(', ');
  const head = `${names(results)} = "${name}"(${names(operands)})`;
  const attributeText = attributes === '' ? '' : ` {${attributes}}`;
  const signature = ` : (${operands.map(printType).join(', ')}) -> ${results.length === 1 ? outputs : `(${outputs})`}`;
  if (regions.length === 0) {
    lines.push(head + attributeText + signature);
    return;
  }
  lines.push(`${head} (`);
  for (const [index, region] of regions.entries()) {
    const parameters = region.parameters.map((value) => `%${value.id}: ${printType(value)}`);
    lines.push(`{ ^bb0${parameters.length === 0 ? '' : `(${parameters.join(', ')})`}:`);
    for (const inner of region.operations) printOperation(inner, lines);
    lines.push(
      `"stablehlo.return"(${names(region.results)}) : (${region.results.map(printType).join(', ')}) -> ()`,
      index === regions.length - 1 ? '}' : '},',
    );
  }
  lines.push(`)${attributeText}${signature}`);
}

function names(values: readonly Value[]): string {
  return values.map((value) => `%${value.id}`).join(', ');
}
