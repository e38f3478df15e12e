//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::auth::AuthArgs;

/// Look after the images of a Berth node.
#[derive(Debug, Parser)]
#[command(name = "berthctl", version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The daemon's socket, with or without unix://. Without it: as the configuration says.
    #[arg(long, short = 'a', value_name = "SOCKET", global = true, env = "BERTHCTL_ADDRESS")]
    pub(crate) address: Option<String>,
    /// The daemon's configuration file. Without it /etc/berth/config.toml, which may be absent.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// For people, or one JSON document per line: progress first, the result last.
    #[arg(long, value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,
    /// Show no progress.
    #[arg(long, short = 'q', global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pull, list, load, save, name and remove images.
    #[command(visible_alias = "i")]
    Image {
        #[command(subcommand)]
        command: Image,
    },
    /// Compare unpacked layers with what was unpacked. Exit code 5: something is damaged.
    Fsck {
        /// Only this image, or the layer with this key.
        only: Option<String>,
        /// Unpack damaged layers again, from kept blobs or from where the image came.
        #[arg(long)]
        repair: bool,
    },
    /// Show who uses how much of the disk.
    Du {
        /// Each layer and container, too.
        #[arg(long)]
        all: bool,
    },
    /// Remove what nothing needs.
    Gc {
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
        /// Say why an image or a layer is kept (all images, without a value); removes nothing.
        #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
        explain: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Pull an image from its registry.
    Pull {
        /// What to pull: NAME[:TAG] or NAME@DIGEST.
        reference: String,
        #[command(flatten)]
        auth: AuthArgs,
    },
    /// List images.
    #[command(visible_alias = "ls")]
    List {
        /// Only this one.
        name: Option<String>,
        /// Print ids only, one per line.
        #[arg(long)]
        ids: bool,
    },
    /// Print all that is known of images.
    Inspect {
        /// Names or ids.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove images, each with all its names.
    #[command(visible_alias = "rm")]
    Remove {
        /// Names or ids.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Give an image one more name.
    Tag {
        /// A name or id that it has.
        image: String,
        /// The further name. It leaves any other image.
        name: String,
    },
    /// Load the images of an archive: docker-archive or OCI layout; plain, gzip or zstd.
    Load {
        /// The archive; `-` is standard input.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// A repository for images that the archive names by a mere tag, or not at all.
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
    /// Save images as one archive, which is an OCI layout and a docker-archive at once.
    Save {
        /// Names or ids. A name is saved as such, an id with all its image's names.
        #[arg(required = true)]
        names: Vec<String>,
        /// The archive; `-` is standard output.
        #[arg(long, short = 'o', value_name = "FILE", default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        auth: AuthArgs,
    },
    /// Send an image to a registry.
    Push {
        /// A name or id that it has.
        image: String,
        /// The name to push it as; without it the first.
        to: Option<String>,
        #[command(flatten)]
        auth: AuthArgs,
    },
    /// Make an image of the tar of a root filesystem.
    Import {
        /// The tar, plain, gzip or zstd; `-` is standard input.
        file: PathBuf,
        /// The image's name.
        name: Option<String>,
        /// A Dockerfile instruction for its configuration, such as 'CMD ["sh"]'.
        #[arg(long, short = 'c', value_name = "INSTRUCTION")]
        change: Vec<String>,
        /// A comment for its history.
        #[arg(long, short = 'm', value_name = "TEXT", default_value = "")]
        message: String,
    },
}
