"""``python -m local_aws``."""

import signal
import sys

# Ctrl-C while the libraries are being imported: nothing has started yet, so there is nothing to say.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from local_aws.commands import main  # noqa: E402

sys.exit(main())
