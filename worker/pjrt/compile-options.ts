import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';

/** XLA flags by name, without dashes: `{ xla_cpu_use_onednn: true }`. */
export type XlaFlags = Readonly<Record<string, string | number | boolean>>;

/**
 * A serialized xla.CompileOptionsProto for one replica with a partition on each of the devices with these ids, made by
 * Shardy where they are several.
 * Source: xla/pjrt/proto/compile_options.proto and DeviceAssignmentProto in xla/xla_data.proto of openxla.org.
 */
export function encodeCompileOptions(deviceIds: readonly number[], flags: XlaFlags): Uint8Array {
  const isPartitioned = deviceIds.length > 1;
  const options = new BinaryWriter();

  options.tag(3, WireType.LengthDelimited).fork(); // executable_build_options
  options.tag(1, WireType.Varint).int64(-1); // device_ordinal: taken from the assignment
  options.tag(4, WireType.Varint).int64(1); // num_replicas
  options.tag(5, WireType.Varint).int64(deviceIds.length); // num_partitions
  if (isPartitioned) options.tag(6, WireType.Varint).bool(true); // use_spmd_partitioning
  options.tag(9, WireType.LengthDelimited).fork(); // device_assignment
  options.tag(1, WireType.Varint).int32(1); // replica_count
  options.tag(2, WireType.Varint).int32(deviceIds.length); // computation_count
  for (const id of deviceIds) {
    options.tag(3, WireType.LengthDelimited).fork(); // computation_devices
    options.tag(1, WireType.LengthDelimited).fork().int64(id).join().join(); // replica_device_ids
  }
  options.join();
  if (isPartitioned) options.tag(19, WireType.Varint).bool(true); // use_shardy_partitioner
  options.join();

  for (const [name, value] of Object.entries(flags)) {
    options.tag(7, WireType.LengthDelimited).fork(); // env_option_overrides, an entry of a map
    options.tag(1, WireType.LengthDelimited).string(name);
    options.tag(2, WireType.LengthDelimited).fork(); // OptionOverrideProto
    if (typeof value === 'string') options.tag(1, WireType.LengthDelimited).string(value);
    else if (typeof value === 'boolean') options.tag(2, WireType.Varint).bool(value);
    else if (Number.isInteger(value)) options.tag(3, WireType.Varint).int64(value);
    else options.tag(4, WireType.Bit64).double(value);
    options.join().join();
  }
  return options.finish();
}
