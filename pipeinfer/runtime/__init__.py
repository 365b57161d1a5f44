"""Who performs the effects: `sim` in virtual time, `live` between real ranks."""
