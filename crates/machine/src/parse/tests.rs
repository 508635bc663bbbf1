use proptest::prelude::*;

use super::*;

const PI_4_CPUINFO: &str = "processor\t: 3\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n\
    CPU implementer\t: 0x41\nCPU part\t: 0xd08\nCPU revision\t: 3\n\nHardware\t: BCM2835\nRevision\t: c03114\n\
    Serial\t\t: 10000000a3f2c51b\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n";

const PI_4_MOUNTS: &str = "/dev/mmcblk0p2 / ext4 rw,noatime 0 0\n\
    devtmpfs /dev devtmpfs rw,relatime,size=1827516k 0 0\n\
    tmpfs /run tmpfs rw,nosuid,nodev 0 0\n\
    /dev/mmcblk0p1 /boot/firmware vfat rw,relatime 0 0\n\
    /dev/sda1 /media/pi/USB\\040stick ext4 rw 0 0\n\
    /dev/loop0 /snap/core squashfs ro 0 0\n\
    10.0.0.1:/export /mnt/nfs nfs4 rw 0 0\n\
    /dev/fuse /run/user/1000/doc fuse.portal rw 0 0\n\
    /dev/mmcblk0p2 /var/lib/docker ext4 rw,noatime 0 0\n";

const PI_4_NET_DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0\n  \
    eth0: 283814885   13498    0    0    0     0          0         0   787708    7122    0    0    0     0       0          0\n \
    wlan0:       7       0    0    0    0     0          0         0        9       0    0    0    0     0       0          0\n";

#[test]
fn device_tree_texts_end_with_nul() {
    assert_eq!(device_tree_text("Raspberry Pi 4 Model B Rev 1.4\0").unwrap(), "Raspberry Pi 4 Model B Rev 1.4");
    assert_eq!(device_tree_text("\0\n"), None);
}

#[test]
fn the_serial_number_is_found_in_cpuinfo() {
    assert_eq!(cpuinfo_serial(PI_4_CPUINFO).unwrap(), "10000000a3f2c51b");
    for none in ["", "Serial", "Serial\t\t:\n", "model name : Serial: x"] {
        assert_eq!(cpuinfo_serial(none), None, "{none:?}");
    }
}

#[test]
fn the_last_digits_distinguish_boards() {
    assert_eq!(last_hex_digits("10000000a3f2c51b"), Some([0xc5, 0x1b]));
    assert_eq!(last_hex_digits("1000000000010000"), Some([0, 0]));
    for none in ["", "51b", "0000000000000000", "Not Specified", "ääää", "10000000+123"] {
        assert_eq!(last_hex_digits(none), None, "{none:?}");
    }
}

#[test]
fn only_a_makers_mac_address_counts() {
    let address = |name: &str, address: &str| (name.to_owned(), address.to_owned());
    let pi = [
        address("wlan0", "dc:a6:32:01:02:04\n"),
        address("docker0", "02:42:fc:f6:ac:9c\n"),
        address("lo", "00:00:00:00:00:00\n"),
        address("eth0", "dc:a6:32:01:02:03\n"),
    ];
    assert_eq!(first_universal_mac(&pi), Some([2, 3]));
    for none in
        ["02:fc:00:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "dc:a6:32", "dc:a6:32:01:02:03:04:05", ""]
    {
        assert_eq!(first_universal_mac(&[address("eth0", none)]), None, "{none:?}");
    }
}

#[test]
fn throttling_bits_have_words() {
    let now = throttled("50005\n").unwrap();
    assert_eq!(now.now, ["under_voltage", "throttled"]);
    assert_eq!(now.since_boot, ["under_voltage", "throttled"]);
    assert_eq!(throttled("throttled=0xa0000").unwrap().since_boot, ["frequency_capped", "soft_temperature_limit"]);
    assert!(throttled("0").unwrap().now.is_empty());
    for none in ["", "0x", "50005 50005", "-1", "1ffffffff"] {
        assert_eq!(throttled(none), None, "{none:?}");
    }
}

#[test]
fn units_are_converted() {
    assert_eq!(megahertz("1800000\n"), Some(1800));
    assert_eq!(megahertz("0"), None);
    assert_eq!(megahertz("<unknown>\n"), None);
    assert_eq!(celsius("48686\n"), Some(48.7));
    assert_eq!(celsius("-273150"), None);
    assert_eq!(celsius(""), None);
    assert_eq!(one_decimal(12.345), 12.3);
}

#[test]
fn disks_are_real_and_named_once() {
    assert_eq!(disk_mounts(PI_4_MOUNTS, 8), ["/", "/boot/firmware", "/media/pi/USB stick"]);
    assert_eq!(disk_mounts(PI_4_MOUNTS, 1), ["/"]);
    let container = "/dev/sda1 /etc/hosts ext4 rw 0 0\n/dev/sda1 /var/lib/rpicluster-slave ext4 rw 0 0\n";
    assert_eq!(disk_mounts(container, 8), ["/var/lib/rpicluster-slave"]);
    assert!(disk_mounts("/dev/sda1\n\n/dev/sda1 /x\n", 8).is_empty());
}

#[test]
fn networks_are_read_without_loopback() {
    let networks_of_pi = networks(PI_4_NET_DEV, 8);
    let expected = Network { name: "eth0".to_owned(), received: 283_814_885, transmitted: 787_708 };
    assert_eq!(networks_of_pi[0], expected);
    assert_eq!(networks_of_pi.len(), 2);
    assert_eq!(networks(PI_4_NET_DEV, 1).len(), 1);
    assert!(networks("eth0: 1 2 3\neth1 1\n:", 8).is_empty());
}

#[test]
fn addresses_are_those_that_others_reach() {
    let all = ["127.0.0.1", "::1", "169.254.3.4", "fe80::1", "192.168.1.7", "192.168.1.7", "fd00::7"];
    let reachable = reachable(all.map(|address| address.parse().unwrap()), 16);
    assert_eq!(reachable, ["192.168.1.7", "fd00::7"]);
}

proptest! {
    #[test]
    fn no_text_makes_them_panic(text in "\\PC*") {
        let _ = device_tree_text(&text);
        let _ = cpuinfo_serial(&text);
        let _ = last_hex_digits(&text);
        let _ = first_universal_mac(&[(text.clone(), text.clone())]);
        let _ = throttled(&text);
        let _ = megahertz(&text);
        let _ = celsius(&text);
        let _ = disk_mounts(&text, 8);
        let _ = networks(&text, 8);
    }
}
