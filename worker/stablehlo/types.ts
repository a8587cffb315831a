/**
 * The program representation: tensor types, values in SSA form, operations, regions.
 * Source: openxla.org/stablehlo/spec#types, #programs.
 */

import type { ProgramShardings } from './sharding.ts';

/** Element types, spelled as StableHLO does: `i32` is signed, `ui32` unsigned, `i1` boolean. */
export type ElementType =
  | 'i1'
  | 'i4'
  | 'i8'
  | 'i16'
  | 'i32'
  | 'i64'
  | 'ui8'
  | 'ui16'
  | 'ui32'
  | 'ui64'
  | 'bf16'
  | 'f16'
  | 'f32'
  | 'f64'
  | 'complex<f32>';

export interface TensorType {
  readonly shape: readonly number[];
  readonly elementType: ElementType;
}

/** A tensor inside a program. `splat` is set where every element is known to be that number. */
export interface Value extends TensorType {
  readonly id: number;
  readonly splat?: number | undefined;
}

/** One operation; `attributes` are printed already, without the braces. */
export interface Operation {
  readonly name: string;
  readonly operands: readonly Value[];
  readonly attributes: string;
  readonly regions: readonly Region[];
  readonly results: readonly Value[];
  /** Floating-point operations of a product of matrices or a convolution; of others they are not counted. */
  readonly flops?: number | undefined;
}

/** Target of the custom call that says how its operand lies in memory, and does nothing else. */
export const LAYOUT_CONSTRAINT = 'LayoutConstraint';

export function isLayoutConstraint({ name, attributes }: Operation): boolean {
  return (
    name === 'stablehlo.custom_call' &&
    attributes.includes(`call_target_name = "${LAYOUT_CONSTRAINT}"`)
  );
}

/** A block of operations with its own parameters, e.g. the body of a `reduce`. */
export interface Region {
  readonly parameters: readonly Value[];
  readonly operations: readonly Operation[];
  readonly results: readonly Value[];
}

/** What a program may do with the buffer of a parameter. */
export type Donation =
  /** The result with this index is written over the parameter. */
  | { readonly aliasOf: number }
  /** The compiler may reuse the buffer for whatever fits. */
  | 'donor';

/** `func.func public @main`. `donations[i]` belongs to parameter i. */
export interface Program {
  readonly name: string;
  readonly body: Region;
  readonly donations: readonly (Donation | undefined)[];
  /** Of a program for several devices. */
  readonly shardings?: ProgramShardings | undefined;
}

export function isFloat(type: ElementType): boolean {
  return type === 'f32' || type === 'f64' || type === 'bf16' || type === 'f16';
}

export function numElements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}

export function sameType(a: TensorType, b: TensorType): boolean {
  return a.elementType === b.elementType && sameShape(a.shape, b.shape);
}

/** `tensor<2x3xf32>` */
export function printType({ shape, elementType }: TensorType): string {
  return `tensor<${shape.map((size) => `${size}x`).join('')}${elementType}>`;
}
