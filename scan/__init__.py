"""``make scan``: what cdk-nag, cfn-lint and checkov find in the templates of every stage."""
