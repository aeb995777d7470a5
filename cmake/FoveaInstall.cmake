# Install rules are added by the folders; this file writes the package.
