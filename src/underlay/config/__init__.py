"""The configuration: one TOML file, or the embedded default. The only reader of either, and of the environment."""

from underlay.config.follow import Follow
from underlay.config.load import SYSTEM_FILE, Config, embedded_config, for_command_line, load_config, parse_config

__all__ = ["SYSTEM_FILE", "Config", "Follow", "embedded_config", "for_command_line", "load_config", "parse_config"]
