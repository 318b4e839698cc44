#!/bin/busybox sh
# Process 1 of the guest: makes ready what the tests of the probes need, runs them, and ends the machine.
#
# What is for whoever reads the serial line begins with "vm: ". /settings.sh says
#   scratch   where the disk belongs: the tests were told so when they were built
#   arguments what each test program is given
#   limit     seconds that one of them may take

/bin/busybox mkdir -p /bin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin

mount -t devtmpfs none /dev
# The kernel's own messages go to the other serial line.
exec </dev/null >/dev/ttyS0 2>&1
stty -onlcr <&1
mount -t proc none /proc
mount -t sysfs none /sys
. /settings.sh

# Ends a program that takes too long, and says what every process waits for.
watch() {
    sleep "$limit"
    echo "vm: $name hangs after $limit s"
    for process in /proc/[0-9]*; do
        arguments=$(tr '\0' ' ' <"$process/cmdline")
        # The kernel's own have none.
        [ -n "$arguments" ] || continue
        echo "${process#/proc/} $(cat "$process/wchan"): $arguments"
        grep State "$process/task"/*/status
    done
    kill -KILL "$1"
}

echo "vm: kernel $(uname -r), $(nproc) CPUs"

# A pure version 2 hierarchy with every controller the tests ask for.
mount -t cgroup2 none /sys/fs/cgroup
echo "+cpu +memory +io" >/sys/fs/cgroup/cgroup.subtree_control
ip link set lo up

# In the order in which they need each other.
for module in /modules/*; do
    insmod "$module" || echo "vm: no module $module"
done
# Memory is no block device, and direct I/O needs one.
mke2fs -q /dev/vda >/dev/null
mkdir -p "$scratch"
mount -t ext4 /dev/vda "$scratch" || echo "vm: no scratch disk"
export TMPDIR="$scratch"

export SIM_EBPF_OBJECT=/sim/sim-ebpf.o SIM_REQUIRE_PRIVILEGED=1 RUST_BACKTRACE=0
for program in /tests/*; do
    name=${program##*/}
    echo "vm: begin $name"
    # shellcheck disable=SC2086 # they are words
    "$program" --test-threads=1 --color=never --show-output $arguments &
    tests=$!
    watch "$tests" &
    watchdog=$!
    wait "$tests"
    echo "vm: exit $name $?"
    kill -KILL "$watchdog" 2>/dev/null
done

# Someone to see, and the program that people look with.
mkdir /sys/fs/cgroup/busy
sh -c 'echo 0 >/sys/fs/cgroup/busy/cgroup.procs; while :; do :; done' &
busy=$!
echo "vm: sense $(timeout -s KILL 60 /sim/sim sense --once -o json --interval-ms 3000)"
kill -KILL "$busy"

echo "vm: end"
poweroff -f
